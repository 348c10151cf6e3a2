"""Graphs without a GPU: what a run launches is recorded with its very tensors, and launched again on them.

A graph remembers addresses and numbers. So does this: a number that the host read, or a tensor that was made anew for
each batch, stays what it was when it was recorded, and comes out as wrong tokens.
"""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

# What makes the host wait for the device, or the size of a tensor depend on what is in others.
READS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "equal", "is_nonzero",
}  # fmt: skip
METHODS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")
# What makes tensors of any content, which nothing has to fill again.
EMPTY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
KERNEL = object()
"""In place of what an op returns."""


class HostReadError(RuntimeError):
    """Something that can't be captured."""


class Recorder(TorchDispatchMode):
    """Runs ops and remembers them."""

    def __init__(self):
        super().__init__()
        self.launches = []
        """(what, its arguments, its keywords, its outputs)"""
        self._inside = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if not self._inside and (name in READS or (name == "repeat_interleave" and "output_size" not in kwargs)):
            raise HostReadError(f"{name} makes the host wait")
        found = func(*args, **kwargs)
        if not self._inside and name.rstrip("_") not in EMPTY:
            self.launches.append((func, args, kwargs, found))
        return found

    def launch(self, kernel, grid):
        """What stands for `kernel[grid]`."""

        def run(*args, **kwargs):
            self._inside = True
            try:
                kernel.run(*args, grid=grid, warmup=False, **kwargs)
            finally:
                self._inside = False
            self.launches.append((kernel, args, {"grid": grid, **kwargs}, KERNEL))

        return run


@contextmanager
def host_reads_forbidden():
    """Where tensors can't be read on the host."""

    def forbid(name):
        def read(tensor, *args, **kwargs):
            raise HostReadError(f"{name} makes the host wait")

        return read

    patches = [mock.patch.object(torch.Tensor, name, forbid(name)) for name in METHODS]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


class EmulatedGraphs:
    """As `tercet.server.engine.graphs.CudaGraphs`, with the kernels in Triton's interpreter."""

    def __init__(self):
        self.replays = 0
        self.recorded = []
        """The launches of every graph, in the order of their capture."""

    def capture(self, run):
        from triton.runtime.jit import KernelInterface  # the one that interprets (`support.device`)

        run()
        recorder = Recorder()

        def launch(kernel, grid):
            return recorder.launch(kernel, grid)

        with (
            recorder,
            mock.patch.object(KernelInterface, "__getitem__", launch),
        ):
            output = run()
        self.recorded.append(recorder.launches)

        def repeat():
            self.replays += 1
            for launch in recorder.launches:
                again(*launch)

        return repeat, output


def again(what, args, kwargs, found):
    """Launches once more, into the tensors that were there."""
    if found is KERNEL:
        what[kwargs["grid"]](*args, **{name: value for name, value in kwargs.items() if name != "grid"})
        return
    anew = what(*args, **kwargs)
    for old, new in zip(tree_flatten(found)[0], tree_flatten(anew)[0], strict=True):
        if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
            old.copy_(new)


def described(launches):
    """A recorded run as what can be compared: names, numbers, and of tensors shapes, dtypes and addresses."""

    def of(tensor):
        return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.data_ptr()

    return [
        (getattr(what, "__name__", str(what)), tree_map_only(torch.Tensor, of, (args, kwargs)))
        for what, args, kwargs, _ in launches
    ]
