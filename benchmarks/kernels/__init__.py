"""The kernels tier: each op against what torch offers for the same work, on the GPU where there is one and on the CPU.

Needs torch and the source tree alone: `PYTHONPATH=server:kernels:clients/python:protos python -m benchmarks.kernels`.
"""

from benchmarks.kernels import attention, calibration, decoding, elementwise
from benchmarks.rows import Tier

# Calibration first: the other rows' figures are read against it.
TIER = Tier(
    rows=(*calibration.ROWS, *attention.ROWS, *decoding.ROWS, *elementwise.ROWS),
    tests=("tests/kernels",),
)
