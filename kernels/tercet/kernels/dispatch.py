"""Chooses which implementation of an op runs, says why one refuses, and counts what ran.

An op has three implementations, functions of one name and signature:

- ``reference``: naive torch, any dtype, the tests' truth (`reference.py`);
- ``cpu``: what a CPU serves with (`cpu.py`);
- ``triton``: the kernels (`jit/`), on a GPU or, under ``TRITON_INTERPRET=1``, in Triton's interpreter.

Modules are imported when their first op runs: a server on a CPU never pays for importing triton.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Implementation = Literal["triton", "cpu", "reference"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)

# The module of each op's kernel and launcher; its keys are all the ops there are.
KERNEL_MODULES = {
    "attention": "attention",
    "attention_plan": "attention_plan",
    "paged_attention": "paged_attention",
    "pad": "padding",
    "unpad": "padding",
    "kv_write": "kv_write",
    "layer_norm": "norm",
    "rms_norm": "norm",
    "activation": "activation",
    "embedding": "embedding",
    "pooling": "pooling",
    "sample": "sample",
    "head_topk": "head_topk",
    "decode_inputs": "decode_step",
    "next_tokens": "decode_step",
    "top_logprobs": "top_logprobs",
    "beam_step": "beam_step",
}
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256
MIN_CAPABILITY = (8, 0)  # of NVIDIA's GPUs
ANY_DTYPE = ("pad", "unpad", "decode_inputs", "next_tokens")  # these move numbers and compute nothing
ATTENTION_OPS = ("attention", "paged_attention")
PRODUCT_OPS = (*ATTENTION_OPS, "head_topk")  # these multiply matrices
# Their first arguments, q, k and v, may be slices of one tensor.
TOKEN_STRIDE_OPS = (*ATTENTION_OPS, "attention_plan", "kv_write")

_launches: Counter[str] = Counter()
_selected: Implementation | None = None  # None: by the device of the tensors
_tf32 = False


class UnsupportedError(RuntimeError):
    """The selected implementation can't run an op; `reasons` says why, each in a sentence."""

    def __init__(self, op: str, implementation: str, reasons: list[str]) -> None:
        super().__init__(f"{op} can't run on {implementation}: {'; '.join(reasons)}")
        self.op = op
        self.implementation = implementation
        self.reasons = reasons


def select(name: str, *, tf32: bool = False) -> None:
    """Sets the implementation for this process: "auto" is triton for CUDA tensors and cpu for others.

    `tf32` lets the Triton kernels multiply float32 in TF32. Raises `ValueError` on an unknown name.
    """
    global _selected, _tf32  # noqa: PLW0603 - one setting a process, made once when it starts
    if name not in ("auto", *IMPLEMENTATIONS):
        raise ValueError(f"implementation must be one of auto, {', '.join(IMPLEMENTATIONS)}, not {name!r}")
    _selected = None if name == "auto" else name
    _tf32 = tf32


def selected(device: torch.device) -> Implementation:
    """The implementation that runs for tensors on `device`."""
    return _selected or ("triton" if device.type == "cuda" else "cpu")


def input_precision() -> Literal["ieee", "tf32"]:
    """How the kernels multiply float32 matrices."""
    return "tf32" if _tf32 else "ieee"


def launches() -> dict[str, int]:
    """Calls so far, keyed "op/implementation"."""
    return dict(_launches)


def count(calls: Mapping[str, int]) -> None:
    """Adds calls that ran again without being called: a graph's."""
    _launches.update(calls)


def unsupported_reasons(
    op: str,
    implementation: str,
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    head_dim: int | None = None,
) -> list[str]:
    """Why `implementation` can't run `op` on such tensors; empty when it can.

    `dtype` is that of the floating-point input, `head_dim` the size of an attention head where the op has one.
    """
    return list(_reasons(op, implementation, torch.device(device), dtype, head_dim, _interpreted()))


def call(op: str, tensor: torch.Tensor, *arguments: Any, head_dim: int | None = None, **options: Any) -> Any:
    """Runs `op` on the selected implementation; `tensor`, its first argument, decides device and dtype."""
    implementation = selected(tensor.device)
    interpreted = implementation == "triton" and _interpreted()  # a look at the environment takes a microsecond
    reasons = _reasons(op, implementation, tensor.device, tensor.dtype, head_dim, interpreted)
    if implementation == "triton":
        reasons += _layout_reasons(op, (tensor, *arguments), options)
    if reasons:
        raise UnsupportedError(op, implementation, list(reasons))
    _launches[f"{op}/{implementation}"] += 1
    return _function(op, implementation)(tensor, *arguments, **options)


@functools.cache
def _function(op: str, implementation: str) -> Callable[..., Any]:
    module = f"jit.{KERNEL_MODULES[op]}" if implementation == "triton" else implementation
    return getattr(importlib.import_module(f"tercet.kernels.{module}"), op)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _reasons(
    op: str, implementation: str, device: torch.device, dtype: torch.dtype, head_dim: int | None, interpreted: bool
) -> tuple[str, ...]:
    if op not in KERNEL_MODULES:
        return (f"there is no op {op!r}, only {', '.join(KERNEL_MODULES)}",)
    if implementation not in IMPLEMENTATIONS:
        return (f"there is no implementation {implementation!r}, only {', '.join(IMPLEMENTATIONS)}",)
    if implementation == "reference":
        return ()
    if implementation == "cpu":
        return () if device.type == "cpu" else (f"the tensors are on {device.type}, not on a CPU",)
    capability = _capability(device)
    refused = {
        "triton is not installed": importlib.util.find_spec("triton") is None,
        f"there are no kernels for {device.type}": device.type not in ("cpu", "cuda"),
        f"the GPU has compute capability {_dotted(capability)}, kernels need {_dotted(MIN_CAPABILITY)}": capability
        < MIN_CAPABILITY,
        "the tensors are on a CPU, where kernels run only in the interpreter (TRITON_INTERPRET=1)": device.type == "cpu"
        and not interpreted,
        f"kernels compute in float32, float16 and bfloat16, not in {dtype}": op not in ANY_DTYPE
        and dtype not in KERNEL_DTYPES,
        f"the value to pad with travels as float32, too narrow for {dtype}": op == "pad" and dtype == torch.float64,
        "the interpreter multiplies bfloat16 matrices wrongly": op in PRODUCT_OPS
        and dtype == torch.bfloat16
        and interpreted,
        f"the head dim is {head_dim}, kernels take at most {MAX_HEAD_DIM}": head_dim is not None
        and not 0 < head_dim <= MAX_HEAD_DIM,
    }
    return tuple(reason for reason, applies in refused.items() if applies)


def _capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of an NVIDIA GPU; of what else there may be, one that suffices."""
    if device.type != "cuda" or torch.version.hip or not torch.cuda.is_available():
        return MIN_CAPABILITY
    return torch.cuda.get_device_capability(device)


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _layout_reasons(op: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[str, ...]:
    """Why the kernels can't read these tensors as they lie in memory."""
    if op not in TOKEN_STRIDE_OPS:
        laid_out = all(_contiguous(x) for x in (*arguments, *options.values()))
        return () if laid_out else ("a tensor is not contiguous",)
    refused = {
        "the heads of a token are not contiguous": not all(map(_dense_heads, arguments)),
        "a tensor beside q, k and v is not contiguous": not all(map(_contiguous, options.values())),
    }
    if op in ATTENTION_OPS:
        k, v = arguments[1:]
        refused["the tokens of k and v lie at different distances"] = len(k) > 1 and k.stride() != v.stride()
    return tuple(reason for reason, applies in refused.items() if applies)


def _contiguous(x: Any) -> bool:
    return not isinstance(x, torch.Tensor) or x.is_contiguous()


def _dense_heads(x: torch.Tensor | None) -> bool:
    """Whether x [tokens, heads, head_dim] may have any distance between tokens; pages may not."""
    return (
        x is None
        or x.is_contiguous()
        or (x.ndim == 3 and x.stride(2) == 1 and (x.shape[1] == 1 or x.stride(1) == x.shape[2]))
    )
