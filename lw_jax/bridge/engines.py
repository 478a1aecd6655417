"""What of a bridge another engine can be given, and what stands in the way.

An engine takes embeddings of a prompt (`prompt_embeds`, positions counted from 0), embeddings with
positions of their own (`inputs_embeds` of transformers), or keys and values of tokens that it is
told it has read (`past_key_values`). Anything that acts on the tokens after the message is the
receiver's own layers changed, and no engine takes that.
"""

from __future__ import annotations

from typing import Literal, get_args

from lw_jax.bridge.config import BridgeConfig
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.types import Delivery
from lw_jax.utils.registry import chosen

Form = Literal["prompt_embeds", "inputs_embeds", "past_key_values"]
FORMS: tuple[Form, ...] = get_args(Form)


def obstacle(form: Form, config: BridgeConfig, layout: LayoutConfig) -> str | None:
    """Why a bridge cannot be exported in a form, as far as its config says; None: it can.

    Args:
        form: the form.
        config: the bridge's.
        layout: the receiver's sequence.
    """
    if layout.with_text:
        return "layout.with_text: the receiver reads the text as well, so there is no message"
    readers = chosen(config.reader)
    for name, reader in readers.items():
        if reader.acts_after:
            return (
                f"bridge.reader.{name} changes how the receiver reads what follows the message, "
                "which no engine takes"
            )
    if form == "past_key_values":
        return None
    for name, reader in readers.items():
        if not (reader.gives_embeds or reader.gives_prompt):
            return (
                f"bridge.reader.{name} gives keys and values to every layer, not embeddings alone; "
                "past_key_values has them"
            )
        if form == "prompt_embeds" and getattr(reader, "positions", "columns") != "columns":
            return (
                f"bridge.reader.{name}.positions: engines count a prompt's positions from 0; train "
                "it with `columns`, or use inputs_embeds or past_key_values"
            )
    return None


def delivered_obstacle(form: Form, delivery: Delivery) -> str | None:
    """The same of a delivery, which a part from outside may have made."""
    edits = delivery.edits
    if edits is not None and (edits.lora is not None or edits.blocks is not None):
        return "its reader changes how the receiver reads what follows the message"
    if form == "past_key_values":
        return None
    if delivery.embeds is None or delivery.kv is not None or edits is not None:
        return "its reader gives keys and values to every layer, not embeddings alone"
    return None


def summary(config: BridgeConfig, layout: LayoutConfig) -> str:
    """What can be exported and what cannot, for people."""
    why = {form: obstacle(form, config, layout) for form in FORMS}
    can = [form for form, text in why.items() if text is None]
    cannot: dict[str, list[str]] = {}
    for form, text in why.items():
        if text is not None:
            cannot.setdefault(text, []).append(form)
    said = [f"can be exported as {', '.join(can)}" if can else "cannot be exported to engines"]
    said += [f"not as {', '.join(forms)}: {text}" for text, forms in cannot.items()]
    return "; ".join(said)
