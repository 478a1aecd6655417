"""Every test sees 8 CPU devices, and an array of another rank never broadcasts by accident."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile far more than they compute: without LLVM's optimiser they take half the time.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 "
    + os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import jax

hypothesis.settings.register_profile("same", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("same")
jax.config.update("jax_numpy_rank_promotion", "raise")
