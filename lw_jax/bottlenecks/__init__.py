"""What the wire does to the latent: one file for each variant.

See docs/design.md section 1, `bottleneck`.
"""
