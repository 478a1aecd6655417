"""A model's own tokenizer, and the ids with which it begins and ends a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lw_jax.errors import UserError, said
from lw_jax.models.arch import Arch
from lw_jax.models.encoder_arch import AnyArch, EncoderArch
from lw_jax.models.gguf import is_gguf, open_gguf
from lw_jax.text.tokenizer import Tokenizer

_PROBE = "a"
_MESSAGE = "\u0001message\u0001"
_DATES = {"%d": "26", "%b": "Jul", "%B": "July", "%Y": "2024", "%m": "07", "%y": "24"}
_TODAY = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f" | replace('{part}', '{value}')" for part, value in _DATES.items())
    + " }}{% endmacro %}{{ '' }}"
)
"""Before templates that write today's date: a prompt must not change overnight. The day is the one
that Llama 3's templates have where they are given none."""


def load_tokenizer(directory: str | Path) -> Any:
    """The fast tokenizer of a model directory or a GGUF file, through transformers.

    Remote code is never run.

    Raises:
        UserError: there is no tokenizer, or it has no fast (tokenizer.json) form.
    """
    folder = Path(directory)
    if is_gguf(folder):
        return open_gguf(folder).tokenizer()
    from transformers import AutoTokenizer  # takes seconds to import, so only where it is needed

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"{folder}: no tokenizer.json in the model directory")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), use_fast=True, trust_remote_code=False, local_files_only=True
        )
        tokenizer(_PROBE, verbose=False)  # some faults show only here
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # many kinds for a bad file; a panic is no Exception
        raise UserError(f"{folder}: the tokenizer cannot be read: {said(error)}") from error
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: only fast tokenizers (tokenizer.json) are supported")
    # Sentence encoders ship with both switched on: texts would be cut and padded silently.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text, no special tokens added; one that is spelled out in the text is plain text."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return list(ids["input_ids"])


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of ids, without special tokens, spaces as they are."""
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def names_of(tokenizer: Any) -> dict[str, Any]:
    """What the files of a tokenizer name: its special tokens, and its chat template as written (not
    as it is filled in, which may hold today's date).
    """
    kinds = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token")
    named = {kind: getattr(tokenizer, kind, None) for kind in kinds}
    named = {kind: str(token) for kind, token in named.items() if token is not None}
    return named | {"chat_template": getattr(tokenizer, "chat_template", None)}


def with_tokenizer_ids(arch: Arch, tokenizer: Any, where: str) -> Arch:
    """The arch with the BOS that its tokenizer really puts, checked against the vocabulary.

    Qwen2's config names a BOS that its tokenizer does not have and that was never trained as one,
    and others name one that their tokenizer never puts before a text: so the tokenizer decides. The
    EOS set is the config's; if it names none, the tokenizer's own EOS.

    Raises:
        UserError: no EOS is named, or a token is outside the model's vocabulary.
    """
    eos = arch.eos_ids or tuple(i for i in [tokenizer.eos_token_id] if i is not None)
    if not eos:
        raise UserError(f"{where}: neither the configs nor the tokenizer name an EOS token")
    arch = replace(arch, bos_id=_bos_put(tokenizer), eos_ids=eos)
    _check_embedded(arch, tokenizer, (arch.bos_id or 0, *eos), where)
    return arch


def with_encoder_ids(arch: EncoderArch, tokenizer: Any, where: str) -> EncoderArch:
    """The arch with the tokens that its tokenizer puts before and after a text.

    Raises:
        UserError: the tokenizer has no such tokens, or the model does not embed them.
    """
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    if first is None or last is None:
        raise UserError(f"{where}: the tokenizer has no [CLS] and [SEP] to put around a text")
    _check_embedded(arch, tokenizer, (first, last), where)
    return replace(arch, cls_id=first, sep_id=last)


def text_tokenizer(
    name: str, hf_tokenizer: Any, bos_id: int | None, eos_ids: Sequence[int]
) -> Tokenizer:
    """The layout's view of a decoder's tokenizer.

    An answer ends with the tokenizer's own EOS if that is one of the model's EOS ids, else with the
    first of them.

    Args:
        name: the model's name, for error messages.
        hf_tokenizer: a transformers tokenizer.
        bos_id: the BOS token; None: the model has none.
        eos_ids: the model's EOS tokens.
    """
    own = hf_tokenizer.eos_token_id
    eos = own if own in eos_ids else eos_ids[0]
    chat = _chat(hf_tokenizer, bos_id)
    return Tokenizer(name, hf_tokenizer.backend_tokenizer, bos_id, int(eos), chat)


def _bos_put(hf_tokenizer: Any) -> int | None:
    """The BOS that a tokenizer puts before a text; None: it puts none, whatever it names."""
    bos = hf_tokenizer.bos_token_id
    ids = hf_tokenizer(_PROBE, verbose=False)["input_ids"]
    return bos if bos is not None and list(ids[:1]) == [bos] else None


def _chat(hf_tokenizer: Any, bos_id: int | None) -> tuple[str, str] | None:
    """What the chat template puts around a user's message; None: there is no template that takes
    one message of a user, and writes it once. A BOS that the layout puts is left out.
    """
    if not getattr(hf_tokenizer, "chat_template", None):
        return None
    try:
        text = hf_tokenizer.apply_chat_template(
            [{"role": "user", "content": _MESSAGE}],
            tokenize=False,
            add_generation_prompt=True,
            chat_template=_TODAY + hf_tokenizer.get_chat_template(),
        )
    except Exception:
        return None
    before, found, after = text.partition(_MESSAGE)
    if not found or _MESSAGE in after:
        return None
    if bos_id is not None and before.startswith(hf_tokenizer.bos_token):
        before = before[len(hf_tokenizer.bos_token) :]
    return before, after


def encoder_tokenizer(name: str, hf_tokenizer: Any, arch: EncoderArch) -> Tokenizer:
    """How a sentence encoder reads a text: [CLS] text [SEP], up to its number of positions."""
    assert arch.cls_id is not None and arch.sep_id is not None  # read from its tokenizer
    return Tokenizer(
        name,
        hf_tokenizer.backend_tokenizer,
        bos_id=arch.cls_id,
        eos_id=arch.sep_id,
        tail=(arch.sep_id,),
        positions=arch.max_positions,
    )


def _check_embedded(arch: AnyArch, tokenizer: Any, ids: Sequence[int], where: str) -> None:
    largest = max(len(tokenizer) - 1, *ids)
    if largest >= arch.vocab_size:
        raise UserError(
            f"{where}: the tokenizer has ids up to {largest}, "
            f"the model embeds only {arch.vocab_size} tokens"
        )
