"""What the bridge is trained for: one file per objective (SPEC section 6)."""
