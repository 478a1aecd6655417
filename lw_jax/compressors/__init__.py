"""From features of any length to a latent: one file per variant (SPEC section 1, `compressor`)."""
