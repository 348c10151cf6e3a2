"""The kernels tier: each op against what torch offers for the same work, on the GPU where there is one and on the CPU.

Needs torch and the source tree alone: `PYTHONPATH=server:kernels:clients/python:protos python -m benchmarks.kernels`.
"""

from benchmarks.kernels import attention, decoding, elementwise, head
from benchmarks.rows import Tier

TIER = Tier(
    rows=(*attention.ROWS, *decoding.ROWS, *head.ROWS, *elementwise.ROWS),
    tests=("tests/kernels",),
)
