"""Whole engines on the device that TERCET_TEST_DEVICE names. `make gpu` sets it; `make test` collects nothing here."""

from __future__ import annotations

import os

import pytest

DEVICE = os.environ.get("TERCET_TEST_DEVICE")
collect_ignore_glob = ["test_*.py"] if DEVICE is None else []


@pytest.fixture(scope="session")
def device() -> str:
    """As settings name it."""
    return "cuda:0" if DEVICE == "cuda" else "cpu"
