"""Tuned receivers that read the text: what a bridge is distilled from (`train.teacher`).

A bridge whose slots see nothing, trained with the text behind them (prompt tuning, or LoRA), is a
receiver that knows the task. What it is given is the same for every text, so it is made once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp

from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.paths import components, from_paths
from lw_jax.compressors import constant
from lw_jax.config.parse import to_dict
from lw_jax.errors import UserError
from lw_jax.models.frozen import Teacher
from lw_jax.pipeline import Pipeline
from lw_jax.readers import soft_prompt
from lw_jax.runs.ends import open_rival
from lw_jax.runs.opened import Session
from lw_jax.runs.places import located
from lw_jax.runs.trained import config_at, layout_at, load_trained
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.types import Delivery, PyTree, Taps
from lw_jax.utils.registry import chosen

OF_THE_SENDER = frozenset({"source_primer", "encoder_use_chat_template"})
"""Fields of a layout that a receiver does not see."""


def load(
    directory: str, pipeline: Pipeline, session: Session | None = None, key: str = "teacher"
) -> dict[str, Teacher]:
    """The tuned receivers of a finished run, or of an exported bridge, by name.

    Args:
        directory: where it is.
        pipeline: of the stage that is taught.
        session: of its run; None: a new one.
        key: what names it in the config.

    Raises:
        UserError: it is missing, is between other receivers, does not read the text, or gives its
            receivers something that depends on the text.
    """
    home = Path(directory)
    config = located(config_at(home), home)
    layout = layout_at(config)
    own = open_rival(pipeline, config, layout, home, session)
    if not isinstance(own.bridge.config.chosen_compressor, constant.Config):
        raise UserError(
            f"{key}: {directory} is no tuned receiver: its compressor is not `constant`, so what "
            "it gives depends on the text"
        )
    if not layout.with_text:
        raise UserError(f"{key}: {directory} was not trained with the text (layout.with_text)")
    trained = load_trained(config, home, own, "last", init_from=directory)
    given = jax.jit(_given, static_argnums=0)(own.bridge, trained.params)
    prompts = dict(own.frozen.prompts)
    what = [trained.digest, to_dict(config)["bridge"], asdict(layout)]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return {name: Teacher(delivery, prompts[name], digest) for name, delivery in given.items()}


def check_layout(directory: str, task: str | None, layout: LayoutConfig) -> None:
    """Checks that a teacher is asked as the receiver that it teaches.

    Args:
        directory: where the teacher is.
        task: name of the task that is taught; None: the stage.
        layout: of that.

    Raises:
        UserError: their sequences differ by more than the text.
    """
    home = Path(directory)
    theirs = layout_at(located(config_at(home), home))
    apart = theirs.differs(layout).keys() - OF_THE_SENDER - {"with_text"}
    if apart:
        of = "" if task is None else f" (tasks.{task})"
        raise UserError(
            f"teacher: {directory} has another layout{of}: {', '.join(sorted(apart))} differ, so "
            "it was not tuned for these questions; set objectives without kd for the task, or "
            "train it with this layout"
        )


def with_prompts(
    params: PyTree, bridge: Bridge, teachers: Mapping[str, Teacher], key: str = "teacher_prompt"
) -> PyTree:
    """A bridge's parameters, its soft prompts being the teachers' soft tokens.

    Args:
        params: the bridge's.
        bridge: the bridge.
        teachers: tuned receivers by name.
        key: what names them in the config.

    Raises:
        UserError: it has no soft prompt, or not as many tokens.
    """
    reader = chosen(bridge.config.reader).get("soft_prompt")
    if not isinstance(reader, soft_prompt.Config):
        raise UserError(f"{key}: the bridge has no soft prompt; set reader.soft_prompt")
    found = dict(components(params))
    for name, dims in bridge.dims.receivers.items():
        given = teachers[name].delivery.embeds
        if given is None or given.shape[1] != reader.tokens:
            count = 0 if given is None else given.shape[1]
            raise UserError(
                f"{key}: the tuned receiver {name} has {count} soft tokens; set "
                f"bridge.reader.soft_prompt.tokens to that (it is {reader.tokens})"
            )
        tokens = given[0].astype(jnp.float32) / (reader.unit * dims.embed_rms)
        found["readers", name, "soft_prompt"] = {"prompt_tokens": tokens}
    return from_paths(found)


def _given(bridge: Bridge, params: PyTree) -> dict[str, Delivery]:
    """What each receiver is given, of one row, by a bridge that looks at no text."""
    taps = {}
    for name in bridge.config.views:
        dims = bridge.dims.of_view(name)
        states = jnp.zeros((dims.taps, 1, 1, dims.source_width), jnp.float32)
        taps[name] = Taps(states, jnp.ones((1, 1), bool), jnp.zeros((1, 1), jnp.int32))
    latent = bridge.encode(params, taps)
    return {name: bridge.deliver(params, name, latent) for name in bridge.dims.receivers}
