"""From a latent to what a frozen receiver is given: one file per variant (SPEC section 5)."""
