"""Where the source text's features come from: one file per variant (SPEC section 1, `source`)."""
