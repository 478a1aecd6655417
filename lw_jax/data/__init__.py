"""Rows of text, their order and their batches. Nothing here imports jax."""
