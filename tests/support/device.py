"""Where kernels run in tests: in Triton's interpreter, or on the GPU that TERCET_TEST_DEVICE=cuda names.

To be imported before anything that imports Triton.
"""

from __future__ import annotations

import importlib
import os
import sys


def _import_interpreted_triton() -> None:
    """Triton decides when it is imported whether it interprets, and transformers may have imported it before us.

    The variable is set for the import alone: processes that other tests start must not inherit it.
    """
    for name in [name for name in sys.modules if name.split(".")[0] == "triton" and not name.startswith("triton._C")]:
        del sys.modules[name]
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        importlib.import_module("triton.language")
    finally:
        del os.environ["TRITON_INTERPRET"]


DEVICE = os.environ.get("TERCET_TEST_DEVICE", "cpu")
ON_GPU = DEVICE == "cuda"
if not ON_GPU:
    _import_interpreted_triton()
