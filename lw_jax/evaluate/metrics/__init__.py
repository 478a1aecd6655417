"""Metrics of one prediction against its gold answers; pure functions of strings."""
