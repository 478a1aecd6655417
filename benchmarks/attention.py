"""cudnn against the xla reference on a GPU: largest difference and time, per kind of mask.

    python benchmarks/attention.py
    python benchmarks/attention.py --far    # only: where gradients are finite, all keys being far

Shapes of a 7B receiver (32/8 heads of 128, bf16); forward, and forward with backward: medians over
7 rounds of 20 calls, after one that compiles.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lw_jax.models.attention import Mask, attention, check, cudnn

ROWS, HEADS, KV_HEADS, WIDTH, ROUNDS, REPEATS = 8, 32, 8, 128, 7, 20


def case(tokens: int, prefix: int, lengths: jax.Array | None) -> tuple[jax.Array, ...]:
    """q, k, v and the mask of packed rows that all see `prefix` columns."""
    keys = jax.random.split(jax.random.key(0), 3)
    columns = tokens + prefix
    q = jax.random.normal(keys[0], (ROWS, tokens, HEADS, WIDTH), jnp.bfloat16)
    k = jax.random.normal(keys[1], (ROWS, columns, KV_HEADS, WIDTH), jnp.bfloat16)
    v = jax.random.normal(keys[2], (ROWS, columns, KV_HEADS, WIDTH), jnp.bfloat16)
    own = jnp.arange(columns)[None] - prefix
    seen = own <= jnp.arange(tokens)[:, None]
    allowed = jnp.broadcast_to(seen[None, None], (ROWS, 1, tokens, columns))
    if lengths is not None:
        allowed &= (own < lengths[:, None])[:, None, None]
    return q, k, v, allowed


def timed(f: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """The result, and milliseconds a call."""
    result, rounds = jax.block_until_ready(f(*args)), list[float]()
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(REPEATS):
            result = f(*args)
        jax.block_until_ready(result)
        rounds.append((time.perf_counter() - begin) / REPEATS * 1e3)
    return result, statistics.median(rounds)


def decoding_steps(interpret: bool = False) -> None:
    """One query a row over a cache of 1,024 columns: what decoding uses, cudnn told the lengths,
    and the decoding kernel that ships with jax."""
    for rows in (1, 16):
        keys = jax.random.split(jax.random.key(1), 3)
        q = jax.random.normal(keys[0], (rows, 1, HEADS, WIDTH), jnp.bfloat16)
        k, v = (
            jax.random.normal(key, (rows, 1024, KV_HEADS, WIDTH), jnp.bfloat16) for key in keys[1:]
        )
        lengths = jnp.full((rows,), 640, jnp.int32)
        seen = (jnp.arange(1024)[None] < lengths[:, None])[:, None, None]

        def by_lengths(q: Any, k: Any, v: Any) -> jax.Array:
            return jax.nn.dot_product_attention(
                q,
                k,
                v,
                query_seq_lengths=jnp.ones_like(lengths),  # noqa: B023
                key_value_seq_lengths=lengths,  # noqa: B023
                implementation="cudnn",
            )

        def kernel(q: Any, k: Any, v: Any) -> jax.Array:
            from jax.experimental.pallas.ops.gpu.decode_attention import gqa

            mixed: jax.Array = gqa(q[:, 0], k, v, kv_seq_len=lengths, interpret=interpret)  # noqa: B023
            return mixed[:, None]

        ways = {"xla": lambda q, k, v: attention(q, k, v, Mask(seen)), "cudnn": by_lengths}  # noqa: B023
        want = None
        for name, way in (ways | {"kernel of jax": kernel}).items():
            try:
                out, ms = timed(jax.jit(way), q, k, v)
            except Exception as error:  # a kernel that is not to be had here is a finding
                reason = (str(error).splitlines() or [""])[0][:120]
                print(f"decoding, {rows} rows: {name}: {type(error).__name__}: {reason}")
                continue
            want = out if want is None else want
            apart = float(jnp.max(jnp.abs(out.astype(jnp.float32) - want.astype(jnp.float32))))
            print(f"decoding, {rows} rows: {name}: {ms:.4f} ms, difference {apart:.3g}")


def far_keys() -> None:
    """Whether gradients are finite where every score is about -120: of cudnn as jax calls it with a
    mask, and as `attention` takes it."""
    for tokens, columns in ((64, 64), (72, 72), (320, 320), (224, 320), (224, 328), (224, 384)):
        keys = jax.random.split(jax.random.key(2), 3)
        sizes = (tokens, 14), (columns, 2), (columns, 2)
        q, k, v = (
            jax.random.normal(key, (2, *size, 64), jnp.bfloat16)
            for key, size in zip(keys, sizes, strict=True)
        )
        q, k = q.at[..., 0].set(31), k.at[..., 0].set(-31)
        seen = jnp.tri(tokens, columns, columns - tokens, dtype=bool)
        allowed = jnp.broadcast_to(seen, (2, 1, tokens, columns))

        def raw(q: Any, k: Any, v: Any) -> jax.Array:
            return jax.nn.dot_product_attention(q, k, v, mask=allowed, implementation="cudnn")  # noqa: B023

        def taken(q: Any, k: Any, v: Any) -> jax.Array:
            return cudnn(q, k, v, Mask(allowed))  # noqa: B023

        for name, way in {"with a mask": raw, "as taken": taken}.items():

            def loss(q: Any, k: Any, v: Any) -> jax.Array:
                return jnp.sum(jnp.sin(way(q, k, v).astype(jnp.float32)))  # noqa: B023

            grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)
            finite = [bool(jnp.isfinite(x).all()) for x in grads]
            print(
                f"far keys, {tokens} queries, {columns} keys, {name}: dq, dk, dv finite: {finite}"
            )


def main() -> None:
    check("cudnn", jnp.bfloat16, WIDTH)
    far_keys()
    if sys.argv[1:] == ["--far"]:
        return
    decoding_steps()
    ragged = jnp.asarray([1024, 900, 777, 1024, 1000, 512, 64, 1], jnp.int32)
    cases = {
        "causal by lengths, 1024": (1024, 0, ragged, True),
        "causal by lengths, 1023": (1023, 0, jnp.minimum(ragged, 1023), True),
        "prefix of 100, 1024": (1024, 100, None, False),
        "odd: 1023 + 100": (1023, 100, None, False),
        "decode step, 1 of 1125": (1, 1124, None, False),
    }
    for name, (tokens, prefix, lengths, by_lengths) in cases.items():
        q, k, v, allowed = case(tokens, prefix, lengths)
        mask = Mask(allowed, lengths if by_lengths else None)
        real = jnp.ones((ROWS, tokens), bool)
        if lengths is not None:
            real = jnp.arange(tokens)[None] < lengths[:, None]

        def mix(q: Any, k: Any, v: Any, mask: Mask, impl: str) -> jax.Array:
            # `attention` itself leaves a decoding step to xla.
            return cudnn(q, k, v, mask) if impl == "cudnn" else attention(q, k, v, mask)

        def loss(q: Any, k: Any, v: Any, impl: str, mask: Mask, real: jax.Array) -> jax.Array:
            mixed = mix(q, k, v, mask, impl).astype(jnp.float32)
            return jnp.sum(jnp.sin(mixed) * real[..., None, None])

        found, took = dict[str, Any](), dict[str, tuple[float, float]]()
        for impl in ("xla", "cudnn"):
            forward = jax.jit(mix, static_argnums=4)
            both = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), static_argnums=3)
            out, forward_ms = timed(forward, q, k, v, mask, impl)
            grads, both_ms = timed(both, q, k, v, impl, mask, real)
            found[impl] = (jnp.where(real[..., None, None], out, 0), *grads)
            took[impl] = forward_ms, both_ms
            print(
                f"{name:26s} {impl:6s} forward {forward_ms:7.2f} ms, + backward {both_ms:7.2f} ms"
            )
        ratios = [a / b for a, b in zip(took["xla"], took["cudnn"], strict=True)]
        print(f"{'':26s} xla over cudnn: {ratios[0]:.1f}, with backward {ratios[1]:.1f}")
        apart = [
            float(jnp.max(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32))))
            for a, b in zip(found["xla"], found["cudnn"], strict=True)
        ]
        print(
            f"{'':26s} largest difference: out, dq, dk, dv = "
            + ", ".join(f"{x:.3g}" for x in apart)
        )


if __name__ == "__main__":
    main()
