"""Runs the kernels in Triton's interpreter, with fresh memory full of NaN, and measures errors against float64.

With TERCET_TEST_DEVICE=cuda (`make gpu`) the same tests run compiled kernels on the GPU, in bfloat16 too.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from support.device import DEVICE, ON_GPU
from tercet.kernels import dispatch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

IMPLEMENTATIONS = ("triton",) if ON_GPU else ("cpu", "triton")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# About the interpreter, the compiler and what a CPU refuses: they show nothing more on a GPU.
ABOUT_OTHERS = ("test_attention_loads.py", "test_compiled.py", "test_dispatch.py", "test_tune.py")
collect_ignore = [*ABOUT_OTHERS] if ON_GPU else []


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Adds bfloat16, which the interpreter multiplies wrongly, wherever a test takes float16."""
    if not ON_GPU:
        return
    for index, mark in enumerate(metafunc.definition.own_markers):
        if mark.name == "parametrize" and mark.args[0] == "dtype" and torch.float16 in mark.args[1]:
            wider = pytest.mark.parametrize("dtype", [*mark.args[1], torch.bfloat16], **mark.kwargs)
            metafunc.definition.own_markers[index] = wider.mark


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Drops tests of the CPU's implementations on a GPU."""
    if ON_GPU:
        items[:] = [item for item in items if not _on_cpu(item)]


def _on_cpu(item: pytest.Item) -> bool:
    call = getattr(item, "callspec", None)
    return (
        Path(__file__).parent in item.path.parents and call is not None and call.params.get("implementation") == "cpu"
    )


def _on_device() -> AbstractContextManager[object]:
    """Tensors that are made inside are on the device under test."""
    return torch.device(DEVICE) if ON_GPU else nullcontext()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The tensors of test modules."""
    with _on_device():
        return (yield)


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not ON_GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    torch.manual_seed(0)
    with _on_device():
        yield


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel forgets to write shows up as NaN, or as an absurd integer."""

    def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def allocate_poisoned(*args: object, **kwargs: object) -> torch.Tensor:
            fresh = allocate(*args, **kwargs)
            return fresh.fill_(float("nan") if fresh.is_floating_point() else 113)

        return allocate_poisoned

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest):
    """Selects each implementation in turn and asserts that nothing else ran."""
    before = dispatch.launches()
    dispatch.select(request.param)
    yield request.param
    dispatch.select("auto")
    ran = {key for key, count in dispatch.launches().items() if count > before.get(key, 0)}
    assert {key.split("/")[1] for key in ran} <= {request.param}


@pytest.fixture
def reference():
    """Calls an op's reference implementation."""
    from tercet.kernels import reference as module

    return module


@pytest.fixture
def assert_close():
    """‖actual - expected‖ / ‖expected‖ within the tolerance of the actual dtype, and nothing that isn't finite."""

    def check(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        assert actual.shape == expected.shape
        assert actual.isfinite().all()
        error = (actual.double() - expected.double()).norm()
        assert error <= TOLERANCE[dtype or actual.dtype] * expected.double().norm(), float(error)

    return check
