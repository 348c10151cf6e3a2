"""Equality on the tiny checkpoints means something: without any one tensor, mask or bias their output is another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.forward import Decoding, Pair, encode, encoder_batch, relative_error, take, texts
from tercet.server.models import Model, load_model
from tercet.server.models.attention import SelfAttention

if TYPE_CHECKING:
    from pathlib import Path

MOVED = 100 * 1e-4  # of the tolerance of equality
LENGTHS = (7, 19, 30)

Load = Callable[[str], Pair]


def output(model: Model) -> torch.Tensor:
    """Everything a model computes for three texts: hidden states, and logits where it has a head."""
    if model.family == "encoder":
        types = [[0] * (n // 2) + [1] * (n - n // 2) for n in LENGTHS]
        return torch.cat(encode(model, texts(*LENGTHS), types))
    sources = texts(*LENGTHS, seed=1) if model.family == "seq2seq" else None
    hidden = torch.cat(Decoding(model, len(LENGTHS), sources=sources).read(texts(*LENGTHS)))
    return torch.cat([hidden, model.logits(hidden)], dim=-1)


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_every_tensor_counts(pair: Load, name: str, tmp_path: Path) -> None:
    case = pair(name)
    (tmp_path / "config.json").write_bytes((case.folder / "config.json").read_bytes())
    tensors = load_file(case.folder / "model.safetensors")
    expected = output(case.ours)
    moved: dict[str, float] = {}
    for tensor in tensors:
        save_file(tensors | {tensor: torch.zeros_like(tensors[tensor])}, tmp_path / "model.safetensors")
        moved[tensor] = relative_error(output(load_model(tmp_path, device=torch.device("cpu"))), expected)
    # A pooler is no part of the hidden states; a bias of BERT's keys adds the same to all scores of a query.
    idle = {tensor for tensor in tensors if tensor.startswith("pooler.") or tensor.endswith("self.key.bias")}
    assert {tensor for tensor, distance in moved.items() if distance < MOVED} == idle


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_causal_mask_counts(pair: Load, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pair(name).ours
    expected = output(model)
    for module in model.transformer.decoder.modules():
        if isinstance(module, SelfAttention):
            monkeypatch.setattr(module, "causal", False)
    assert relative_error(output(model), expected) > MOVED


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_the_padding_mask_counts(pair: Load, name: str) -> None:
    model = pair(name).ours
    batch = encoder_batch(texts(*LENGTHS), padded=True)
    rows = replace(batch.rows, length=torch.full_like(batch.rows.length, batch.rows.longest))
    unmasked = model.encode(replace(batch, rows=rows))
    for hidden, expected in zip(take(unmasked, batch.rows)[:2], encode(model, texts(*LENGTHS))[:2], strict=True):
        assert relative_error(hidden, expected) > MOVED


def test_the_length_of_a_source_counts(pair: Load) -> None:
    model = pair("t5").ours
    targets = texts(5, 5)
    whole, cut = (Decoding(model, 2, sources=texts(9, 12)) for _ in range(2))
    cut.sources = [9, 8]
    (same, other), (same_again, less) = whole.read(targets), cut.read(targets)
    assert torch.equal(same, same_again)
    assert relative_error(less, other) > MOVED
