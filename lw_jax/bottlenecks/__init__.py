"""What the wire does to the latent: one file per variant (SPEC section 1, `bottleneck`)."""
