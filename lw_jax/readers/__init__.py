"""From a latent to what a frozen receiver is given: one file for each variant.

See docs/design.md section 5.
"""
