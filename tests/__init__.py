"""The tests."""

import os

# Before numpy is there. Its threads wait for each other in busy loops: two processes that keep two
# cores busy would spend ten times as long on a product of matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
