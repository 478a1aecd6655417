"""Sources of the features of a text: one file for each variant.

See docs/design.md section 1, `source`.
"""
