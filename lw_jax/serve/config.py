"""How a bridge is served; it imports no jax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from lw_jax.utils.bounds import Checked, Location, TokensOrNone

DEMO_QUESTIONS = 3
"""That the demo page asks at once: of the latent, the text, and as much of it as has room."""


@dataclass(frozen=True)
class ServeConfig(Checked):
    """Limits of a server: what goes beyond one is refused, with the reason.

    Args:
        role: which end it is.
        rows: texts or questions that are run at once, at most.
        queue: texts and questions that may wait; beyond it 429 is answered.
        timeout: seconds from a request's arrival until 504 is answered in place of it.
        most_bytes: of a request's body; beyond it 413.
        window: tokens of the longest window of a text, in any source; 0: the longest in training.
        parts: of a message, at most; longer texts get 413.
        question_tokens: of the longest question, its anchor included; 0: the longest in training.
        text_tokens: of the longest text that the receiver is given in words; 0: none is.
        stream: whether answers may be streamed, a question at a time; if not, less is compiled.
        demo: whether the demo page is served.
        receiver: address of the server to which questions about texts are handed on; null: none.
    """

    role: Literal["both", "sender", "receiver"] = "both"
    rows: Annotated[int, Ge(1), Le(16)] = 16
    queue: Annotated[int, Ge(1), Le(100_000)] = 256
    timeout: Annotated[float, Gt(0), Le(86_400)] = 30.0
    most_bytes: Annotated[int, Ge(1024), Le(2**30)] = 2**20
    window: TokensOrNone = 0
    parts: Annotated[int, Ge(1), Le(1024)] = 4
    question_tokens: TokensOrNone = 0
    text_tokens: TokensOrNone = 0
    stream: bool = True
    demo: bool = False
    receiver: Location | None = None
