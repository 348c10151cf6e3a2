"""What the tests of replayed steps share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.device import ON_GPU
from tercet.kernels import dispatch

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def triton_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels that are compiled, or in Triton's interpreter: what serves on a CPU reads lengths on the host."""
    if not ON_GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    dispatch.select("triton")
    yield
    dispatch.select("auto")
