"""What a chat template puts around a message: the same every day, and the message once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lw_jax.models.tokenizer import load_tokenizer, text_tokenizer

MODEL = Path(__file__).parents[2] / "zoo/tiny-mistral"
DATED = (  # as Llama 3.2's
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = 'never' %}"
    "{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(MODEL)


@pytest.mark.parametrize(
    ("template", "around"),
    [
        ("Q: {{ messages[0]['content'] }}\nA:", ("Q: ", "\nA:")),
        # A prompt that changed overnight would make another task of a resumed run.
        (f"{DATED}Today is {{{{ date_string }}}}.\n{{{{ messages[0]['content'] }}}}\nA:",
         ("Today is 26 Jul 2024.\n", "\nA:")),
        ("{{ strftime_now('%Y') }} {{ messages[0]['content'] }}", ("2024 ", "")),
        # What stands there twice is no message with something around it.
        ("{{ messages[0]['content'] }} once more: {{ messages[0]['content'] }}", None),
        ("nothing of it", None),
        # What is written otherwise is no text that the message could be put in place of.
        ("{{ messages[0]['content'] | e }}", None),
        ("{{ messages[0]['content'] | upper }}", None),
        ("{{ messages[0]['content'] | replace('\n', ' ') }}", None),
        ("{{ range(9999) | random }} {{ messages[0]['content'] }}", None),
        ("{{ raise_exception('no user') }}", None),
    ],
)  # fmt: skip
def test_what_stands_around_a_message(
    template: str, around: tuple[str, str] | None, tokenizer: Any
) -> None:
    tokenizer.chat_template = template
    assert text_tokenizer("r", tokenizer, 1, (2,)).chat == around
