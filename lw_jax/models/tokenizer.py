"""A model's own tokenizer, and the ids with which it begins and ends a sequence."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lw_jax.errors import UserError, said
from lw_jax.models.arch import Arch
from lw_jax.models.checkpoint import read_json
from lw_jax.models.encoder_arch import AnyArch, EncoderArch
from lw_jax.models.gguf import is_gguf, open_gguf
from lw_jax.text.tokenizer import Tokenizer

_PROBE = "a"
_MESSAGE = '\u0001a <message> & "it\'s"\nhere\u0001'
"""With what templates might write otherwise."""
_DATES = {"%d": "26", "%b": "Jul", "%B": "July", "%Y": "2024", "%m": "07", "%y": "24"}
_TODAY = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f" | replace('{part}', '{value}')" for part, value in _DATES.items())
    + " }}{% endmacro %}{{ '' }}"
)
"""Before templates that write today's date: a prompt must not change overnight. The day is the one
that Llama 3's templates have where they are given none."""

_AUTO, _PLAIN, _QWEN = "AutoTokenizer", "PreTrainedTokenizerFast", "Qwen2Tokenizer"
_CLASSES = {
    **{f"{of}/{_PLAIN}": _PLAIN for of in ("llama", "mistral", "qwen3")},
    **{f"{of}/TokenizersBackend": _PLAIN for of in ("llama", "mistral", "qwen3")},
    **{f"{of}/{_QWEN}": _QWEN for of in ("qwen2", "qwen3")},
}
"""What `AutoTokenizer` chooses, by the family and the class that a model's files name."""


def load_tokenizer(directory: str | Path) -> Any:
    """The fast tokenizer of a model directory or a GGUF file, through transformers.

    Remote code is never run.

    Raises:
        UserError: there is no tokenizer, or it has no fast (tokenizer.json) form.
    """
    folder = Path(directory)
    if is_gguf(folder):
        return open_gguf(folder).tokenizer()
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"{folder}: no tokenizer.json in the model directory")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            read_json(folder / name)
    kind = _class_of(folder)
    try:
        with _panics_held():
            tokenizer = kind.from_pretrained(
                str(folder), trust_remote_code=False, local_files_only=True
            )
            tokenizer(_PROBE, verbose=False)  # some faults show only here
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # many kinds for a bad file; a panic is no Exception
        what = f"no {said(error)}" if isinstance(error, KeyError) else said(error)
        raise UserError(f"{folder}: the tokenizer cannot be read: {what}") from error
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: only fast tokenizers (tokenizer.json) are supported")
    # Sentence encoders ship with both switched on: texts would be cut and padded silently.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    if dropped := getattr(tokenizer.backend_tokenizer.model, "dropout", None):
        raise UserError(
            f"{folder}: tokenizer.json: model.dropout is {dropped:g}, so a text would have other "
            "tokens each time; set it to null"
        )
    return tokenizer


@contextmanager
def _panics_held() -> Iterator[None]:
    """While inside, standard error is held back: of a panic, which becomes an exception, nothing of
    its page of frames is shown; all else comes afterwards.
    """
    try:
        sys.stderr.flush()
        own = os.dup(2)
    except (OSError, ValueError, AttributeError):  # there is no standard error
        yield
        return
    panicked = False
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException as error:
            panicked = type(error).__name__ == "PanicException"
            raise
        finally:
            sys.stderr.flush()
            os.dup2(own, 2)
            os.close(own)
            held.seek(0)
            if not panicked and (text := held.read()):
                os.write(2, text)


def _class_of(folder: Path) -> Any:
    """transformers' class for the tokenizer of a model directory.

    It is `AutoTokenizer`, which takes seconds where torch is installed, as it imports that; or what
    it would choose, where the files name a class of `_CLASSES` and nothing else.
    """
    import transformers  # takes a while as well, so only where it is needed

    files = folder / "config.json", folder / "tokenizer_config.json"
    model, own = (read_json(path) if path.is_file() else {} for path in files)
    both = f"{model.get('model_type')}/{own.get('tokenizer_class')}"
    other = "auto_map" in own or (folder / "tekken.json").exists()
    return getattr(transformers, _AUTO if other else _CLASSES.get(both, _AUTO))


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
    arch = replace(arch, bos_id=_bos_put(tokenizer, where), eos_ids=eos)
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


def _bos_put(hf_tokenizer: Any, where: str) -> int | None:
    """The BOS that a tokenizer puts before a text; None: it puts none, whatever it names.

    Raises:
        UserError: it puts several tokens there.
    """
    whole, bare = (
        list(hf_tokenizer(_PROBE, verbose=False, add_special_tokens=added)["input_ids"])
        for added in (True, False)
    )
    found = (i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    before = whole[: next(found, 0)]
    if len(before) > 1:
        raise UserError(
            f"{where}: the tokenizer puts {len(before)} tokens before a text "
            f"({', '.join(map(str, before[:5]))}); a model with one, or none, can be used"
        )
    return int(before[0]) if before else None


def _chat(hf_tokenizer: Any, bos_id: int | None) -> tuple[str, str] | None:
    """What the chat template puts around a user's message; None: there is no template that takes
    one message of a user, and writes it once, as it is, and the same each time. A BOS that the
    layout puts is left out.
    """
    if not getattr(hf_tokenizer, "chat_template", None):
        return None
    try:
        texts = {
            hf_tokenizer.apply_chat_template(
                [{"role": "user", "content": _MESSAGE}],
                tokenize=False,
                add_generation_prompt=True,
                chat_template=_TODAY + hf_tokenizer.get_chat_template(),
            )
            for _ in range(3)
        }
    except Exception:
        return None
    before, found, after = min(texts).partition(_MESSAGE)
    if len(texts) > 1 or not found or _MESSAGE in after:
        return None
    bos = None if bos_id is None else hf_tokenizer.convert_ids_to_tokens(bos_id)
    return before.removeprefix(bos or ""), after


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
    """Raises UserError if an id has no embedding, or stands for two tokens."""
    own = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    if len(set(own.values())) < len(own):
        token, count = Counter(own.values()).most_common(1)[0]
        raise UserError(f"{where}: tokenizer.json: {count} tokens have the id {token}")
    largest = max(len(tokenizer) - 1, *tokenizer.get_vocab().values(), *ids)
    if largest >= arch.vocab_size:
        raise UserError(
            f"{where}: the tokenizer has ids up to {largest}, "
            f"the model embeds only {arch.vocab_size} tokens"
        )
