"""A bridge behind HTTP: `lw-jax serve` (docs/serving.md)."""
