"""From features of any length to a latent: one file per variant.

See docs/design.md section 1, `compressor`.
"""
