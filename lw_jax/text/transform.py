"""Names of changes of soft tokens (`lw_jax.receiver.transform` makes them); no jax here.

| name | a vector becomes |
|---|---|
| `rms`, `rms_F` | as loud as the receiver's embeddings of real text are on average; F times that |
| `scale_F` | F times itself (the earlier systems: 0.5 to 1.5) |
| `batch` | whitened by the batch's mean and deviation per channel, coloured by the table's |
| `nearest_K` | the mean of the K rows of the embedding table with the largest cosine to it |
| `offset_F` | the message's mean plus F times its difference from that (anchor + offset) |
| `codebook_T` | a mixture of all rows, softmax of their cosines to it over the temperature T |
"""

from __future__ import annotations

from lw_jax.errors import UserError

PLAIN = ("rms", "batch")
NUMBERED = ("rms", "scale", "nearest", "offset", "codebook")
KNOWN = ", ".join([*PLAIN, *(f"{kind}_<number>" for kind in NUMBERED)])
"""All names, for people."""


def parsed(name: str, where: str) -> tuple[str, float | None]:
    """The kind of a change, and its number.

    Args:
        name: of the change.
        where: the option that has it, for messages.

    Raises:
        UserError: it is none of the above, or its number is missing or out of range.
    """
    kind, _, number = name.partition("_")
    if kind in PLAIN and not number:
        return kind, None
    if kind not in NUMBERED:
        raise UserError(f"{where}: unknown {name!r}; one of {KNOWN}")
    try:
        value = float(number)
    except ValueError as error:
        raise UserError(f"{where}: {name!r} needs a number, as in {kind}_1") from error
    if not 0 < value <= 1e6 or (kind == "nearest" and value != int(value)):
        whole = "a whole number" if kind == "nearest" else "a number"
        raise UserError(f"{where}: {name!r} needs {whole} above 0, and at most 1,000,000")
    return kind, value
