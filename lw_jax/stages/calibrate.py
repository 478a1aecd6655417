"""The stage that measures the frozen models: the sender's taps and the receivers' embeddings.

Means and deviations per channel, gathered in one pass over the rows (Chan et al. 1979), and for a
source with a PCA the covariance of each tap, whose principal directions are kept. For a part that
is fitted in closed form (a compressor to embeddings, a reader to keys and values), the sums that
its map is solved from. What is gathered is kept after every batch, in float64, so that a run that
is killed goes on from there and ends with the very same numbers. The file: see
`lw_jax.runs.statistics`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from lw_jax.bridge.bridge import Bridge, fresh
from lw_jax.bridge.config import SOURCE, closed_form, fits, fitted_reader, pca, to_be_trained
from lw_jax.bridge.module import BridgeModule
from lw_jax.compressors.least_squares import KEY, LeastSquares, Sums, least_squares_of, solve, sums
from lw_jax.config.schema import CalibrateConfig
from lw_jax.data.example import Group
from lw_jax.data.load import load_rows, sample
from lw_jax.errors import UserError
from lw_jax.mesh import fetch
from lw_jax.models.decoder import embed_tokens
from lw_jax.models.frozen import FrozenModels
from lw_jax.pipeline import Pipeline
from lw_jax.receiver.rms import keys_and_values
from lw_jax.runs import statistics
from lw_jax.runs.calibrated import reader_key
from lw_jax.runs.directory import Run
from lw_jax.runs.identity import identity
from lw_jax.runs.rows import remarks_of, report
from lw_jax.runs.session import open_pipeline
from lw_jax.sources.pca import fit
from lw_jax.text.fit import length_remark
from lw_jax.train.progress import Display
from lw_jax.types import Array, Features, Taps
from lw_jax.utils.registry import chosen
from lw_jax.utils.signals import termination

Moments = tuple[Array, ...]
"""Count [], mean [n, D], sum of squared deviations [n, D]; for a PCA that of their products
[n, D, D] as well. Float32 on the device, of one batch; float64 on the host, of all."""

path_of = statistics.path_of
SPANS = "fit/spans"
"""Keys of a batch, with a receiver's name: which of its tokens overlap each of the source's."""


def run(run: Run, name: str, cfg: CalibrateConfig) -> None:
    """Read `cfg.rows` training contexts and write the statistics of every frozen model.

    Raises:
        UserError: all rows are too long, or what is gathered belongs to other models.
        SystemExit: code 143 after SIGTERM, 130 after Ctrl-C, with what is gathered kept.
    """
    config = run.config
    pipeline = open_pipeline(config, run.mesh, run.run_dir, session=run.session)
    rows = load_rows(config.data, "train", config.seed)
    groups = [group[:1] for group in sample(rows, cfg.rows)]
    if fits(pipeline.bridge.config):
        fresh.eval_shape(pipeline.bridge, jax.random.key(0))  # raises if parts do not fit
    path, mine = path_of(run.run_dir, name), identity(config, name, pipeline)
    found, start = statistics.load_part(path, mine)
    collate = pipeline.collate(groups)
    lengths, limit = collate.lengths, pipeline.layout.max_tokens
    measured = [*remarks_of(rows), length_remark(lengths, limit, len(groups), "to measure on")]
    report(run.console, f"stages.{name}", measured)
    with termination() as stop, Display(name, start, len(groups)) as display:
        if start:
            display.say(f"resumed after row {start} of {len(groups)}")
        for at in range(start, len(groups), cfg.batch_size):
            part = groups[at : at + cfg.batch_size]
            seen = _batch_moments(pipeline, collate, part, cfg.batch_size)
            found = {key: _together(key, found.get(key), value) for key, value in seen.items()}
            done = at + len(part)
            statistics.save_part(path, found, done, mine)
            display.step(done)
            if stop() and done < len(groups):
                display.say(f"stopped after row {done}: run the same command again to go on")
                stop.leave()
        if not all(value[0] for value in found.values()):
            raise UserError("layout.max_tokens: every row is longer; raise it, or measure others")
        fitted, said = _fitted(pipeline.bridge, found)
        found = {key: value for key, value in found.items() if not _is_fit(key)}
        statistics.save(path, found, mine, fitted)
        tokens = ", ".join(f"{key} {int(value[0])}" for key, value in found.items())
        display.say(f"{len(groups)} contexts measured into {path}; tokens: {tokens}")
        for line in said:
            display.say(line)


def lost(run: Run, name: str, cfg: CalibrateConfig) -> str | None:
    """Whether the finished stage's statistics are gone, and a later stage still needs them.

    Raises:
        UserError: they are damaged.
    """
    names, done = list(run.config.stages), run.finished()
    later = names[names.index(name) + 1 :]
    bridge = run.config.bridge
    fitted = bridge is not None and to_be_trained(bridge) is None
    kinds = ("train", "evaluate") if fitted else ("train",)
    needing = [n for n in later if not chosen(run.config.stages[n]).keys().isdisjoint(kinds)]
    if all(n in done for n in needing):
        return None
    path = path_of(run.run_dir, name)
    try:
        statistics.check(path)
    except FileNotFoundError:
        return f"done already, but {path} is gone; measured again"
    return None


def _fitted(bridge: Bridge, found: statistics.Found) -> tuple[dict[str, np.ndarray], list[str]]:
    """What is fitted to what was gathered, by its key in the file, and lines for people.

    Raises:
        UserError: too few tokens for a fit.
    """
    fitted: dict[str, np.ndarray] = {}
    said = []
    if (projected := pca(bridge.config)) is not None:
        count, _, _, products = found["source"]
        own = fit(projected[1], products, float(count))
        fitted |= {f"source/{key}": value for key, value in own.items()}
        said.append(_shares(own))
    maps: list[tuple[str, str, LeastSquares, str]] = []
    if (mapped := closed_form(bridge.config)) is not None:
        maps.append((KEY, mapped[0], mapped[1], "the embeddings' variance"))
    if (read := fitted_reader(bridge.config)) is not None:
        for name in bridge.dims.receivers:
            what = f"the variance of {name}'s keys and values"
            how = LeastSquares(l2=read[1].l2)
            maps.append((reader_key(name), f"bridge.reader.{read[0]}", how, what))
    for key, option, how, what in maps:
        gathered = Sums(*cast(tuple[Array, ...], found[key]))
        try:
            kernel, bias, explained = solve(how, gathered)
        except UserError as error:
            raise UserError(f"{option}: {error}") from error
        parts = {"kernel": kernel, "bias": bias, "explained": np.array(explained)}
        parts["tokens"] = np.asarray(gathered.tokens)
        fitted |= {f"{key}/{part}": value for part, value in parts.items()}
        said.append(
            f"closed form: explains {explained:.2f} of {what} ({int(gathered.tokens)} tokens)"
        )
    return fitted, said


def _shares(fitted: dict[str, np.ndarray]) -> str:
    """A line for people: how much of each tap's variance the directions hold."""
    width, components = fitted["directions"].shape[1:]
    shares = ", ".join(f"{share:.1%}" for share in fitted["kept"])
    return f"pca: {components} of {width} directions hold {shares} of the source's variance"


def _batch_moments(pipeline: Pipeline, collate: Any, groups: list[Group], size: int) -> Any:
    """Moments of some rows, filled up to `size`: one shape, one program."""
    filled = groups + groups[:1] * (size - len(groups))
    real = np.arange(size) < len(groups)
    extra = {"real": real}
    for name in _targets(pipeline.bridge):
        extra[f"{SPANS}/{name}"] = collate.overlaps(filled, name)
    batch = pipeline.placed(collate(filled) | extra)
    return fetch(_moments(pipeline.bridge, pipeline.frozen, batch))


@partial(jax.jit, static_argnums=0)
def _moments(bridge: Bridge, frozen: FrozenModels, batch: dict[str, Any]) -> dict[str, Moments]:
    """Moments over the real tokens of a batch, per tap of the source and per receiver."""
    taps = next(iter(bridge.extract(frozen.sender, batch, None, frozen.receivers).values()))
    found = {}
    if taps.states.shape[0]:  # bytes have no taps
        crossed = pca(bridge.config) is not None
        found["source"] = moments(taps.states, taps.mask & batch["real"][:, None], crossed)
    for name, model in frozen.receivers.items():
        ids, lengths = batch[f"{name}/context/ids"], batch[f"{name}/context/lengths"]
        mask = (jnp.arange(ids.shape[1])[None] < lengths[:, None]) & batch["real"][:, None]
        found[name] = moments(embed_tokens(model.params, ids)[None], mask)
    return found | _sums(bridge, frozen, batch, taps)


def _targets(bridge: Bridge) -> list[str]:
    """The receivers to which something is fitted."""
    if fitted_reader(bridge.config) is not None:
        return list(bridge.dims.receivers)
    mapped = least_squares_of(bridge.config.chosen_compressor)
    return [] if mapped is None else [mapped.target_of(list(bridge.dims.receivers))]


def _sums(
    bridge: Bridge, frozen: FrozenModels, batch: dict[str, Any], taps: Taps
) -> dict[str, Sums]:
    """The sums that a batch adds to the least squares of compressor or readers, by key.

    Raises:
        UserError: the source does not give a vector for every token.
    """
    if not fits(bridge.config):
        return {}
    module = BridgeModule(bridge.config, bridge.dims)
    views = module.apply({"params": {}}, {SOURCE: taps}, method="views")
    view = cast(dict[str, Features], views)[SOURCE]
    if view.x.shape[1] != taps.ids.shape[1]:
        raise UserError(
            "bridge.source: it does not give a vector for every token, and "
            f"{fits(bridge.config)[0]} needs one; use hidden_states or embeddings"
        )
    mask = view.mask & (batch["real"] & batch["valid"])[:, None]
    found = {}
    for name in _targets(bridge):
        model, ids = frozen.receivers[name], batch[f"{name}/context/ids"]
        key, target = KEY, embed_tokens(model.params, ids)
        if fitted_reader(bridge.config) is not None:
            head, lengths = frozen.prompt(name).head, batch[f"{name}/context/lengths"]
            key, target = reader_key(name), keys_and_values(model, head, ids, lengths)
        found[key] = sums(view.x, target, batch[f"{SPANS}/{name}"], mask)
    return found


def moments(x: Array, mask: Array, crossed: bool = False) -> Moments:
    """Moments of x [n, B, T, D] over the tokens of mask [B, T], float32.

    crossed: with the products of any two channels' deviations.
    """
    x = x.astype(jnp.float32)
    keep = mask.astype(jnp.float32)[None, :, :, None]
    count = jnp.sum(keep)
    mean = jnp.sum(x * keep, axis=(1, 2)) / jnp.maximum(1.0, count)
    apart = (x - mean[:, None, None]) * keep
    squares = jnp.sum(jnp.square(apart), axis=(1, 2))
    if not crossed:
        return count, mean, squares
    # By default a GPU rounds the factors to ten bits.
    products = jnp.einsum("nbtd,nbte->nde", apart, apart, precision=jax.lax.Precision.HIGHEST)
    return count, mean, squares, products


def _together(
    key: str, old: tuple[np.ndarray, ...] | None, new: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, ...]:
    """What two parts of the rows give together, float64: moments are combined, sums added."""
    if not _is_fit(key):
        return combine(old, new)
    own = tuple(np.asarray(x, np.float64) for x in new)
    return own if old is None else tuple(a + b for a, b in zip(old, own, strict=True))


def _is_fit(key: str) -> bool:
    """Whether what is gathered under a key are the sums of a fit."""
    return key.endswith("/fit")


def combine(
    old: tuple[np.ndarray, ...] | None, new: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, ...]:
    """Moments of two samples together, float64."""
    n, mean, *sums = (np.asarray(x, np.float64) for x in new)
    if old is None or not n:
        return (n, mean, *sums) if old is None else old
    m, mean_0, *sums_0 = old
    gap = mean - mean_0
    total = m + n
    gaps = [np.square(gap)] if len(sums) == 1 else [np.square(gap), gap[:, :, None] * gap[:, None]]
    both = [a + b + c * m * n / total for a, b, c in zip(sums_0, sums, gaps, strict=True)]
    return total, mean_0 + gap * n / total, *both
