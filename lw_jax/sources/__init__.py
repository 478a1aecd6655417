"""Where the source text's features come from: one file per variant.

See docs/design.md section 1, `source`.
"""
