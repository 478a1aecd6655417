"""The rivals: the same step and decoding in PyTorch with transformers, plainly written and tuned.

The tuned step ends the sender at its tap, runs the head on the answers alone, and compiles layers,
bridge and losses; the tuned decoding has a static cache and is compiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional

from benchmarks.speed import turns
from benchmarks.speed.measure import times
from benchmarks.speed.sizes import Sizes
from benchmarks.speed.uneven import batches, in_order, summary

Row = dict[str, Any]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _steps(s: Sizes, how: dict[str, str], sources: list[int]) -> dict[int, Callable[[], Any]]:
    """A training step of texts of each of these lengths, `how["torch"]` being `plain`, `tuned` or
    `compiled`."""
    torch.manual_seed(0)
    kind = how["torch"]
    torch.set_float32_matmul_precision("high")
    plain, compiled = kind == "plain", kind == "compiled"
    sender = _model(s.sender, s.dtype, None if plain else s.tap)
    receiver = _model(s.receiver, s.dtype)
    if not plain:
        sender.model.norm = nn.Identity()  # a tap is before the final norm
    bridge = Resampler(s, max(sources)).to(DEVICE)
    optimiser = torch.optim.AdamW(bridge.parameters(), lr=1e-4, fused=DEVICE == "cuda")
    call: Any = bridge
    loss_of: Any = _losses
    if compiled:
        torch._dynamo.config.recompile_limit = 64
        for layer in (*sender.model.layers, *receiver.model.layers):
            layer.compile(dynamic=False)
        call, loss_of = torch.compile(bridge, dynamic=False), torch.compile(_losses, dynamic=False)
    table, a = receiver.get_input_embeddings(), s.answer

    def made(source: int) -> tuple[dict[str, Any], Any]:
        batch = {
            name: torch.randint(3, 128, (s.rows, size), device=DEVICE)
            for name, size in {
                "source": source,
                "context": source,
                "ask": s.ask,
                "answer": s.answer,
                "head": 4,
            }.items()
        }
        return batch, torch.cat([batch[k] for k in ("head", "context", "ask", "answer")], 1)

    def once(batch: dict[str, Any], text: Any) -> Any:
        with torch.no_grad():
            if plain:
                seen = sender(input_ids=batch["source"], output_hidden_states=True)
                states = seen.hidden_states[s.tap]
                teacher = receiver(input_ids=text).logits[:, -a - 1 : -1]
            else:
                states = sender.model(input_ids=batch["source"], use_cache=False).last_hidden_state
                read = receiver.model(input_ids=text, use_cache=False).last_hidden_state
                teacher = receiver.lm_head(read[:, -a - 1 : -1])
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=s.dtype == "bfloat16"):
            soft = call(states)
        parts = [table(batch["head"]), soft.to(table.weight.dtype)]
        embeds = torch.cat([*parts, table(batch["ask"]), table(batch["answer"])], 1)
        if plain:
            student = receiver(inputs_embeds=embeds).logits[:, -a - 1 : -1]
        else:
            read = receiver.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
            student = receiver.lm_head(read[:, -a - 1 : -1])
        loss = loss_of(student, teacher, batch["answer"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bridge.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    return {source: partial(once, *made(source)) for source in sources}


def step(s: Sizes, how: dict[str, str]) -> dict[str, Row]:
    """A training step; with `sources`, of texts of each of these lengths."""
    found: dict[str, Row] = {}
    sources = [int(n) for n in how["sources"].split(",")] if "sources" in how else [s.source]
    calls = _steps(s, how, sources)
    turns.leave()  # it compiles on the processors, and calls the device a few times
    firsts = {source: _first(call_with) for source, call_with in calls.items()}
    turns.alone()
    for source, call_with in calls.items():
        row = times(call_with, _wait, s.warm, s.times) | {"first_s": firsts[source]}
        row["rows_per_s"] = round(s.rows / row["ms"] * 1e3, 2)
        name = f"step_{source}" if "sources" in how else "step"
        found[name] = row | _memory()
        began = time.perf_counter()  # as training goes: no step is waited for
        for _ in range(s.times):
            call_with()
        _wait(None)
        each = (time.perf_counter() - began) / s.times * 1e3
        found[f"{name}_unwaited"] = {"ms": round(each, 4)}
    return found


def uneven(s: Sizes, how: dict[str, str]) -> dict[str, Row]:
    """Steps of texts of uneven length, padded to one of six lengths, as lw_jax does it, and to the
    longest text of each step."""
    of = batches(s)
    calls = _steps(s, how, sorted({*of.bucketed, *of.longest}))
    turns.alone()  # so many lengths call the device too often to be compiled beside who measures
    firsts = {size: _first(call) for size, call in calls.items()}
    found = {
        size: times(call, _wait, 1, max(3, s.times // 3)) | {"first_s": firsts[size]} | _memory()
        for size, call in calls.items()
    }
    rows: dict[str, Row] = {f"step_{size}": row for size, row in found.items()}
    for kind in ("bucketed", "longest"):
        took = in_order(lambda size: calls[size](), _wait, getattr(of, kind))
        rows |= summary(found, of, kind, took)
    return rows


def decode(s: Sizes, how: dict[str, str]) -> dict[str, Row]:
    """Greedy decoding with transformers' dynamic cache (`plain`), or a static one, compiled."""
    model = _model(s.receiver, s.dtype)
    extra = {} if how["torch"] == "plain" else {"cache_implementation": "static"}
    found: dict[str, Row] = {}

    @torch.no_grad()
    def once(ids: Any, new: int) -> Any:
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=new,
            max_new_tokens=new,
            pad_token_id=0,
            **extra,
        )

    # The longer answer first: a static cache stays as long as it was, and is compiled once.
    calls = {
        (rows, new): partial(once, torch.randint(3, 128, (rows, s.prompt), device=DEVICE), new)
        for rows in s.decoded
        for new in (s.new, 2)
    }
    turns.leave()
    firsts = {at: _first(call) for at, call in calls.items()}
    turns.alone()
    for rows in s.decoded:
        some = {
            new: times(calls[rows, new], _wait, 1, max(3, s.times // 4))
            | {"first_s": firsts[rows, new]}
            for new in (s.new, 2)
        }
        found[f"b{rows}_prompt{s.prompt}_new{s.new}"] = some[s.new]
        each = (some[s.new]["ms"] - some[2]["ms"]) / (s.new - 2)
        found[f"b{rows}_per_token"] = {"ms": round(each, 4)} | _memory()
    return found


PARTS = {"step": step, "uneven": uneven, "decode": decode}


def _first(call: Any) -> float:
    """Seconds of the first call, which compiles."""
    began = time.perf_counter()
    call()
    _wait(None)
    return round(time.perf_counter() - began, 3)


def _losses(student: Any, teacher: Any, labels: Any) -> Any:
    log_q = functional.log_softmax(student.float().flatten(0, 1), -1)
    log_p = functional.log_softmax(teacher.float().flatten(0, 1), -1).detach()
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return functional.nll_loss(log_q, labels.flatten()) + kl


def _model(shape: dict[str, Any], dtype: str, layers: int | None = None) -> Any:
    """A frozen model of random weights, made on the device."""
    facts = {k: v for k, v in shape.items() if k not in ("architectures", "torch_dtype", "dtype")}
    if layers is not None:
        facts["num_hidden_layers"] = layers
    kind = facts.pop("model_type")
    config = transformers.AutoConfig.for_model(kind, **facts)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(DEVICE):
            made = transformers.AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(before)
    return made.eval().requires_grad_(False)


class Resampler(nn.Module):
    """A bridge of the sizes of lw_jax's: learned queries that read the source and each other."""

    def __init__(self, s: Sizes, longest: int) -> None:
        super().__init__()
        wide = s.receiver["hidden_size"]
        self.enter = nn.Linear(s.sender["hidden_size"], s.width)
        self.place = nn.Parameter(torch.randn(longest, s.width) * 0.02)
        self.queries = nn.Parameter(torch.randn(s.slots, s.width) * 0.02)
        self.blocks = nn.ModuleList(Block(s.width, s.heads) for _ in range(s.depth))
        self.leave = nn.Linear(s.width, wide)

    def forward(self, states: Any) -> Any:
        y = self.enter(states.float()) + self.place[: states.shape[1]]
        x = self.queries.expand(len(y), -1, -1)
        for block in self.blocks:
            x = block(x, y)
        return self.leave(x) * 0.02


class Block(nn.Module):
    """Cross-attention, self-attention, MLP, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(3))
        self.cross, self.own = Mixed(width, heads), Mixed(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: Any, y: Any) -> Any:
        x = x + self.cross(self.norms[0](x), y)
        h = self.norms[1](x)
        x = x + self.own(h, h)
        return x + self.mlp(self.norms[2](x))


class Mixed(nn.Module):
    """Attention of x over y."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Any, y: Any) -> Any:
        q, k, v = (
            of(z).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for of, z in ((self.q, x), (self.k, y), (self.v, y))
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.o(mixed.transpose(1, 2).flatten(2))


def _wait(_: Any) -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _memory() -> Row:
    if DEVICE != "cuda":
        return {}
    return {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)}
