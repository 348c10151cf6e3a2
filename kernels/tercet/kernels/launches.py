"""What the Triton launchers launch, without a GPU: they run on tensors of torch's "meta" device while the launch is
recorded.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import torch

from tercet.kernels import configurations, dispatch

if TYPE_CHECKING:
    from tercet.kernels.calls import Call

KERNELS = "tercet.kernels.jit."
DEVICES = {"sm_80": {"A100"}, "sm_90": {"H100", "H200"}, "sm_100": {"B200"}}  # that may have rows of their own
POINTERS = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


class Launch(NamedTuple):
    """A recorded `kernel[grid](*arguments, **keywords)`."""

    kernel: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


def launches(call: Call, keys: tuple[str, ...] = ("any",)) -> list[Launch]:
    """What the Triton launchers launch for a call on the device that `configurations` calls `keys`."""
    from triton.runtime.jit import KernelInterface

    recorded: list[Launch] = []

    def record(kernel: Any, grid: object) -> Any:
        return lambda *arguments, **keywords: recorded.append(Launch(kernel, arguments, keywords))

    with (
        mock.patch.object(KernelInterface, "__getitem__", record),
        mock.patch.multiple(dispatch, _selected="triton", _tf32=call.dtype == "tf32", _reasons=lambda *arguments: ()),
        mock.patch.object(configurations, "device_keys", return_value=keys),
    ):
        call.run()
    return recorded


def source(launch: Launch) -> tuple[Any, dict[str, Any]]:
    """The compiler's input for a launch, as triton makes it when it launches: both find the same in its cache.

    1 is a constant, multiples of 16 are known; what a kernel is not specialized for is neither.
    """
    import triton
    from triton.compiler import ASTSource
    from triton.tools.tensor_descriptor import TensorDescriptor

    lists_constants = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7)  # among what has attributes
    kernel = launch.kernel
    names: list[str] = kernel.arg_names
    values = dict(zip(names, launch.arguments, strict=False)) | launch.keywords
    constants = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    unknown = {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
    signature: dict[str, str] = {}
    constexprs: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, name in enumerate(names):
        value = values[name]
        if isinstance(value, TensorDescriptor):
            signature[name] = f"tensordesc<{POINTERS[value.base.dtype].removeprefix('*')}{list(value.block_shape)}>"
            continue
        one = isinstance(value, int) and value == 1 and name not in unknown
        if name in constants or value is None or one:
            signature[name] = "constexpr"
            constexprs[index,] = value
            if lists_constants or isinstance(value, str):
                attributes[index,] = []
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
        if name not in unknown and isinstance(value, (torch.Tensor, int)):
            known = isinstance(value, torch.Tensor) or value % 16 == 0
            attributes[index,] = [["tt.divisibility", 16]] if known else []
    options = {name: value for name, value in values.items() if name not in names}
    return ASTSource(kernel, signature, constexprs, attributes), options


def shipped(call: Call, target: str) -> list[list[Launch]]:
    """Each launch of a call on a target, as often as the target's devices have configurations of their own."""
    named = {choice.device for choice in configurations.read_tiles()} & DEVICES.get(target, set())
    on_devices = [launches(call, keys) for keys in ((target, "any"), *((name, target, "any") for name in named))]
    return [list({describe(launch): launch for launch in same}.values()) for same in zip(*on_devices, strict=True)]


def describe(launch: Launch) -> str:
    """The constants and options that make a launch's configuration."""
    constants = {p.name for p in launch.kernel.params if p.is_constexpr}
    chosen = {name: value for name, value in launch.keywords.items() if name in constants or name.startswith("num_")}
    return " ".join(f"{name}={value}" for name, value in chosen.items())


def fingerprint(launch: Launch) -> str:
    """Changes with the source of the kernel, of what it calls, and with the compiler's input."""
    compiler_source, options = source(launch)
    signature = {name: kind.replace(" ", "") for name, kind in compiler_source.signature.items()}
    attributes = {place: told for place, told in compiler_source.attrs.items() if told}
    given = signature, compiler_source.constants, attributes, options
    digest = hashlib.sha256(repr((launch.kernel.__name__, *(sorted(part.items()) for part in given))).encode())
    for module in sorted(_modules(launch.kernel.fn.__module__)):
        digest.update(Path(str(sys.modules[module].__file__)).read_bytes())
    return digest.hexdigest()[:16]


def _modules(name: str) -> set[str]:
    """A module of kernels and those whose kernels it calls."""
    found = {name}
    for value in vars(sys.modules[name]).values():
        other = getattr(value, "__module__", name)
        if isinstance(other, str) and other.startswith(KERNELS) and other not in found:
            found |= _modules(other)
    return found
