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


def _patch_the_language_once_a_launch() -> None:
    """The interpreter makes `triton.language` its own when a kernel is launched, and again whenever that calls another
    function, where there is nothing left to change: most of its time.
    """
    from triton.runtime import interpreter

    launch, patch, patched = interpreter.GridExecutor.__call__, interpreter._patch_lang, set()

    def launch_anew(*args, **kwargs):
        patched.clear()
        return launch(*args, **kwargs)

    def patch_once(function):
        """Functions of one module see the same language."""
        seen = id(function.__globals__)
        if seen in patched:
            return None
        patched.add(seen)
        return patch(function)

    interpreter.GridExecutor.__call__ = launch_anew
    interpreter._patch_lang = patch_once


DEVICE = os.environ.get("TERCET_TEST_DEVICE", "cpu")
ON_GPU = DEVICE == "cuda"
if not ON_GPU:
    _import_interpreted_triton()
    _patch_the_language_once_a_launch()
