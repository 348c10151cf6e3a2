"""Engines on a GPU that isn't there: torch's "meta" device, whose tensors have shapes and dtypes and no content.

What reads a number of it raises, and so does an op on tensors of the host and of the device. Of kernels it is kept what
triton would compile.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import support.device  # noqa: F401 - before triton is imported
from support.engine import settings
from tercet.kernels import configurations, dispatch
from tercet.server.engine import loading, runner, transfer
from tercet.server.engine.beam import BeamSearch
from tercet.server.models import load, load_model
from tercet.server.models.layers import Prepared

META = torch.device("meta")
H100 = ("H100", "sm_90", "any")
ALIGNMENT = 16  # bytes, of what an allocator gives and of what triton looks for


class MetaDevice:
    """What is launched on it."""

    def __init__(self):
        self.variants = {}
        """What triton would compile, kernel, dtypes, constants and what is known of numbers, with the first call's
        arguments."""

    def engine(self, folder, **changes):
        """A warm engine of a checkpoint, with all that one of a GPU has."""
        chosen = settings(source=str(folder), device=str(META), kernels="triton", page_size=16, **changes)
        with mock.patch.object(load, "Prepared", ()):
            model = load_model(folder, device=torch.device("cpu"), dtype=chosen.dtype)
        _move(model)
        with self._running(), mock.patch.object(loading, "load_model", return_value=model):
            return loading.load_engine(chosen, lambda report: None)[0]

    def run(self, engine, *messages):
        """Submits messages and runs the engine until nothing is left; what it rejected."""
        rejected = []
        with self._running():
            for message in messages:
                engine.submit(message)
            while engine.busy:
                rejected += [output for output in engine.step().outputs if hasattr(output, "reason")]
        return rejected

    @contextmanager
    def _running(self):
        from triton.runtime.jit import KernelInterface  # the one that interprets (`support.device`)

        def launcher(kernel, grid):
            return lambda *arguments, **keywords: self._launch(kernel, grid, arguments, keywords)

        with ExitStack() as stack:
            for owner, name, value in (
                (KernelInterface, "__getitem__", launcher),
                (dispatch, "_reasons", lambda *arguments: ()),
                (configurations, "device_keys", lambda device: H100),
                (loading, "CudaGraphs", _Graphs),
                (runner, "Download", _Download),
                (transfer.PackedBuffer, "upload", _upload),
                (BeamSearch, "advance", _advance),
            ):
                stack.enter_context(mock.patch.object(owner, name, value))
            stack.enter_context(_OneDevice())
            yield

    def _launch(self, kernel, grid, arguments, keywords):
        given = dict(zip(kernel.arg_names, arguments, strict=False)) | keywords
        if not all(isinstance(size, int) and size > 0 for size in grid):
            raise ValueError(f"{kernel.__name__} has the grid {grid}")
        unknown = _unspecialized(kernel)
        told = ((name, _told(value, name in unknown)) for name, value in given.items())
        self.variants.setdefault((kernel.__name__, *told), given)


def _move(model):
    """Prepares a model for the device and moves its weights there."""
    for module in model.transformer.modules():
        if isinstance(module, Prepared):
            module.prepare(META)
    for part in (model.transformer, model.projection):
        for module in part.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.to(META), requires_grad=False))
    model.device = META


def _unspecialized(kernel):
    """The arguments that a kernel is not specialized for; one that is interpreted keeps what it was decorated with."""
    if hasattr(kernel, "params"):
        return {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
    return set(kernel.kwargs.get("do_not_specialize") or ())


def _told(value, unknown):
    """What triton makes of an argument."""
    if isinstance(value, torch.Tensor):
        if value.device != META:
            raise ValueError(f"a kernel gets a tensor on {value.device}")
        return value.dtype, unknown or value.storage_offset() * value.element_size() % ALIGNMENT == 0
    if hasattr(value, "block_shape"):  # a descriptor
        return _told(value.base, unknown=True), tuple(value.block_shape)
    if isinstance(value, float):
        return float
    return int if unknown and isinstance(value, int) else value


class _OneDevice(TorchDispatchMode):
    """Nothing is moved between host and device: that happens in two places, which are replaced here."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        # A plain number comes as a tensor of the host, which the host reads.
        if len({tensor.device for tensor in tensors}) > 1 and func is not torch.ops.aten.fill_.Tensor:
            raise ValueError(f"{func} gets tensors of the host and of the device")
        return func(*args, **kwargs or {})


class _Graphs:
    """Captures by running twice."""

    def capture(self, run):
        run()
        return (lambda: None), run()


class _Download:
    """Zeros, as many as there would be."""

    def __init__(self, tensors):
        if any(tensor.device != META for tensor in tensors):
            raise ValueError("what is downloaded was never on the device")
        self._arrays = [np.zeros(tuple(tensor.shape), transfer._NUMPY[tensor.dtype]) for tensor in tensors]

    def arrays(self):
        return self._arrays


def _upload(buffer, device):
    moved = torch.empty(len(buffer._bytes) // 4, dtype=torch.int32, device=device)
    buffer.copies += 1
    return {name: moved[first:last].view(dtype) for name, (first, last, dtype) in buffer.fields.items()}


_goes_on = BeamSearch.advance


def _advance(search, step):
    """Ends with the longest text: what the device says of ends is zeros."""
    return _goes_on(search, step) or len(search.tokens) >= search.request.limit
