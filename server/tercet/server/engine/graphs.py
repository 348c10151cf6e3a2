"""Graphs: launches that were recorded once and are replayed with what then lies at the same addresses."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from tercet.kernels import dispatch
from tercet.server.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

Output = TypeVar("Output")

log = logging.getLogger(__name__)


class Backend(Protocol):
    """What records launches."""

    def capture(self, run: Callable[[], Output]) -> tuple[Callable[[], object], Output]:
        """What repeats the launches of `run`, and its output, which every repetition fills anew.

        `run` may run several times. It reads nothing on the host that the device computes, and tensors that it is to
        find changed must not be made by it.
        """
        ...


class CudaGraphs:
    """CUDA graphs that share one pool of memory: the output of one is to be read before another is replayed."""

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # one for all: cuBLAS keeps 32 MiB for every stream it has seen

    def capture(self, run: Callable[[], Output]) -> tuple[Callable[[], object], Output]:
        # A first run compiles kernels and sets libraries up, on a stream of its own as torch's notes on graphs ask for.
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            run()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            output = run()
        return graph.replay, output


@dataclass(frozen=True)
class Graph:
    """Recorded launches."""

    repeat: Callable[[], object]
    output: Any
    kernels: Counter[str]
    """Calls of ops, as `dispatch` counts them."""


class Graphs:
    """The graphs of an engine. Where one can't be captured, what it holds is launched as ever."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._graphs: dict[Hashable, Graph] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._graphs

    @torch.inference_mode()
    def capture(self, key: Hashable, run: Callable[[], object]) -> bool:
        """Records `run`; False, with the reason in the log, if that fails."""
        kernels = Counter[str]()

        def counted() -> object:
            before = dispatch.launches()
            output = run()
            kernels.clear()
            kernels.update(Counter(dispatch.launches()) - Counter(before))
            return output

        try:
            repeat, output = self._backend.capture(counted)
        except Exception as error:  # torch's, of the kind that a lost device has too, or a compiler's
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            reason = " ".join(str(error).split())
            log.warning("not captured, will be launched", extra=fields(step=str(key), reason=reason))
            return False
        self._graphs[key] = Graph(repeat, output, kernels)
        return True

    def output(self, key: Hashable) -> Any:
        """Where the output of a graph lies."""
        return self._graphs[key].output

    def replay(self, key: Hashable) -> Any:
        """Repeats what was recorded; the output is the same tensors as ever, filled anew."""
        graph = self._graphs[key]
        graph.repeat()
        dispatch.count(graph.kernels)
        return graph.output
