"""The receiver's sequence, defined once for training, scoring and decoding.

See docs/design.md section 3.

`layout` turns text into segments of token ids on the host; `pack` lays the segments of every row
contiguously on the device; `read` runs the frozen receiver over them. Nobody calls `read` but
`answer`, the one way to ask: it scores given answers, and writes answers of the receiver's own.
"""
