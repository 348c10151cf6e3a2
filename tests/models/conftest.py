"""Checkpoints loaded twice, by us and by transformers, once for each worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
import transformers

from support.architectures import ROWS
from support.checkpoints import save
from support.forward import Pair
from tercet.server.models import load_model


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """A row of the table of architectures, with one of its heads, else its first."""

    @cache
    def load(name: str, head: str | None = None) -> Pair:
        head = head or ROWS[name].classes[0]
        folder = save(tmp_path_factory.mktemp(name), name, head)
        ours = load_model(folder, device=torch.device("cpu"))
        return Pair(folder, ours, getattr(transformers, head).from_pretrained(folder).eval())

    return load


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield
