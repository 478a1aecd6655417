"""Subcommands of `lw-jax`: the file `NAME.py` defines `COMMAND`, which is `lw-jax NAME`.

A new subcommand is a new file, and nothing else is edited. What a file imports at its top has to do
without jax, so that help and wrong command lines are answered at once; the rest `run` imports.
`base.py` and files whose names begin with `_` are none.
"""
