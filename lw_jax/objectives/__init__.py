"""What the bridge is trained for: one file per objective (docs/design.md section 6).

`base.py` is their contract, `config.py` makes the config's choice of them, and `common/` holds what
several of them use.
"""
