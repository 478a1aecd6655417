"""The Python API: a text to bytes on one machine, bytes and a question to an answer on another.

    bridge = Bridge.load("zoo/bridges/facts")
    sent = bridge.encode("Ada keeps 7 goats in the barn.")
    bridge.answer(sent, "How many goats does Ada keep?")

Each end needs its own models alone: `Bridge.load(..., role="sender")` and `role="receiver"`.
Texts, packets and questions may be lists, and the result is then one.
"""

from lw_jax.api.bridge import Bridge

__all__ = ["Bridge"]
