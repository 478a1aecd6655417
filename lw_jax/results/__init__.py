"""From finished runs to the tables and pictures of `docs/`; needs no accelerator and no jax."""
