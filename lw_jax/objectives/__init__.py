"""What the bridge is trained for: one file per objective (docs/design.md section 6)."""
