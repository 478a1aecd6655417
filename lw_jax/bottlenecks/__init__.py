"""What the wire does to the latent: one file per variant.

See docs/design.md section 1, `bottleneck`.
"""
