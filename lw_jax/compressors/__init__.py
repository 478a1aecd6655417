"""From features of any length to a latent: one file for each variant.

See docs/design.md section 1, `compressor`.
"""
