"""The sound config over two tiny models, in which tests put one thing wrong."""

from tests.config.conftest import models, raw, write

__all__ = ["models", "raw", "write"]
