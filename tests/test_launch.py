"""What `python -m lw_jax.launch` sets before jax is loaded."""

from __future__ import annotations

from lw_jax.launch import set_environment


def test_what_the_user_has_set_stays() -> None:
    environ = {
        "XLA_FLAGS": "--xla_gpu_enable_triton_gemm=true --xla_dump_to=here",
        "TOKENIZERS_PARALLELISM": "true",
    }
    before = dict(environ)
    set_environment(environ)
    assert {name: environ[name] for name in before} == before


def test_other_flags_are_kept_beside_its_own() -> None:
    environ = {"XLA_FLAGS": "--xla_dump_to=here"}
    set_environment(environ)
    assert environ["XLA_FLAGS"].split() == [
        "--xla_dump_to=here",
        "--xla_gpu_enable_triton_gemm=false",
    ]
    set_environment(once := {})
    assert once["XLA_FLAGS"] == "--xla_gpu_enable_triton_gemm=false"
