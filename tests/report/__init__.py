"""Tests of `lw_jax.report`."""
