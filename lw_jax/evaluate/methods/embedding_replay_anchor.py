"""`embedding_replay_anchor`: the text's own embeddings, and the anchor's tokens after them.

The earlier systems replayed a prompt's embeddings with the anchor after them (this) and without any
("raw"). Here every method has question and anchor after its message, so this is
`embedding_replay_raw` under the name that it had there.
"""

from __future__ import annotations

from dataclasses import replace

from lw_jax.evaluate.methods import embedding_replay_raw

METHOD = replace(embedding_replay_raw.METHOD, order=81, default=False)
