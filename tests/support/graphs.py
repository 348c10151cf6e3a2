"""Graphs without a GPU: what a run launches is recorded with its very tensors, and launched again on them.

A graph remembers addresses and numbers. So does this: a number that the host read, or a tensor that was made anew for
each batch, stays what it was when it was recorded, and comes out as wrong tokens.
"""

from __future__ import annotations

from contextlib import ExitStack
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from support.device import ON_GPU
from tercet.server.engine.graphs import CudaGraphs

# Ops of which the host needs a number of the device, and methods of tensors likewise.
READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
METHODS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")
# Tensors of any content, which nothing has to fill again.
EMPTY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
KERNEL = object()
"""In place of what an op returns."""


class HostReadError(RuntimeError):
    """The host would wait for the device."""


class Recorder(TorchDispatchMode):
    """Runs what is launched inside, and remembers it; the host may read no tensor."""

    def __init__(self):
        super().__init__()
        self.launches = []
        """What is launched, its arguments and keywords, and what it returns."""
        self._interpreting = False
        self._patches = ExitStack()

    def __enter__(self):
        from triton.runtime.jit import KernelInterface  # the one that interprets (`support.device`)

        for name in METHODS:
            read = getattr(torch.Tensor, name)
            self._patches.enter_context(mock.patch.object(torch.Tensor, name, self._guarded(name, read)))

        def launcher(kernel, grid):
            return self._launcher(kernel, grid)

        self._patches.enter_context(mock.patch.object(KernelInterface, "__getitem__", launcher))
        return super().__enter__()

    def __exit__(self, *error):
        self._patches.close()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if not self._interpreting:
            if _reads(func, args, kwargs):
                raise HostReadError(f"{_name(func)} makes the host wait")
            self.launches.append((func, args, kwargs, found))
        return found

    def _guarded(self, name, read):
        def guarded(*args, **kwargs):
            if not self._interpreting:
                raise HostReadError(f"{name} makes the host wait")
            return read(*args, **kwargs)

        return guarded

    def _launcher(self, kernel, grid):
        def launch(*args, **kwargs):
            self._interpreting = True
            try:
                kernel.run(*args, grid=grid, warmup=False, **kwargs)
            finally:
                self._interpreting = False
            self.launches.append((kernel, args, {**kwargs, "grid": grid}, KERNEL))

        return launch

    def described(self):
        """What can be compared between runs: names, numbers, and of tensors shapes, dtypes and where they come from:
        an address, or the launch that made them."""
        made, lines = {}, []

        def place(tensor):
            if tensor.is_mkldnn:  # a packed weight
                return id(tensor)
            storage = tensor.untyped_storage().data_ptr()
            kind = tuple(tensor.shape), tensor.stride(), tensor.dtype
            return (*kind, tensor.storage_offset(), made.get(storage, storage))

        for index, (what, args, kwargs, found) in enumerate(self.launches):
            name = str(getattr(what, "__name__", what))
            lines.append((name, tree_map_only(torch.Tensor, place, (args, kwargs))))
            for tensor in tree_leaves(found):
                if isinstance(tensor, torch.Tensor):
                    made.setdefault(tensor.untyped_storage().data_ptr(), f"made by {index}")
        return lines


def recorded(*runs):
    """What each launches; a host that reads a tensor raises."""
    found = []
    for launch in runs:
        with torch.inference_mode(), Recorder() as recorder:
            launch()
        found.append(recorder.described())
    return found


class EmulatedGraphs:
    """As `tercet.server.engine.graphs.CudaGraphs`, with the kernels in Triton's interpreter."""

    def capture(self, run):
        run()
        with (recorder := Recorder()):
            output = run()
        launches = [launch for launch in recorder.launches if _name(launch[0]) not in EMPTY]

        def repeat():
            for launch in launches:
                _again(*launch)

        return repeat, output


def backend():
    """What captures where the tests run."""
    return CudaGraphs() if ON_GPU else EmulatedGraphs()


def _reads(func, args, kwargs):
    name = _name(func)
    if name in ("index", "index_put", "index_put_"):  # a mask's size is counted, that of other indices is known
        return any(index.dtype in (torch.bool, torch.uint8) for index in args[1] if isinstance(index, torch.Tensor))
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    return not READS.isdisjoint(func.tags)


def _name(what):
    return what._schema.name.removeprefix("aten::") if hasattr(what, "_schema") else what.__name__


def _again(what, args, kwargs, found):
    """Launches once more, into the tensors that were there."""
    if found is KERNEL:
        what[kwargs["grid"]](*args, **{name: value for name, value in kwargs.items() if name != "grid"})
        return
    for old, new in zip(tree_leaves(found), tree_leaves(what(*args, **kwargs)), strict=True):
        if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
            old.copy_(new)
