"""Loading is strict: of every architecture with every head, no tensor may be missing, left over or misshapen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.architectures import ROWS, cases, representatives, template, used
from support.forward import Pair
from support.loading import WEIGHTS, Tensors, refusal, rewrite
from tercet.server.models.architectures import ARCHITECTURES

# The rows that stand for an architecture as a whole.
MAIN = {name: row for name, row in ROWS.items() if not row.heads}
# Of two names that a tensor may have, an error that it is missing says the commoner.
COMMONER = {"encoder.embed_tokens.weight": "shared.weight", "model.encoder.embed_tokens.weight": "model.shared.weight"}

Load = Callable[..., Pair]


def tensors_to_change(pair: Load, name: str, head: str) -> tuple[Tensors, list[str]]:
    """All tensors, and one name of each kind that the first head's file doesn't have."""
    first = ROWS[name].classes[0]
    tensors = load_file(pair(name, head).folder / WEIGHTS)
    before = () if head == first else used(first, load_file(pair(name, first).folder / WEIGHTS))
    return tensors, representatives(used(head, tensors), but=before)


@pytest.mark.parametrize(("name", "head"), cases(MAIN))
def test_dropping_renaming_or_reshaping_a_tensor_or_adding_one_is_refused_with_its_name(
    pair: Load, name: str, head: str, tmp_path: Path
) -> None:
    case, file = pair(name, head), tmp_path / WEIGHTS
    tensors, names = tensors_to_change(pair, name, head)
    for tensor in names:
        value = tensors[tensor]
        rest = {other: kept for other, kept in tensors.items() if other != tensor}
        assert refusal(rewrite(case, tmp_path, rest)) == f"{file}: missing tensor {COMMONER.get(tensor, tensor)}"
        renamed = refusal(rewrite(case, tmp_path, rest | {f"{tensor}s": value}))
        assert renamed == f"{file}: unexpected tensor {tensor}s"
        longer = torch.cat([value, value[:1]])
        misshapen = refusal(rewrite(case, tmp_path, rest | {tensor: longer}))
        assert misshapen.startswith(f"{file}: tensor {tensor} has shape {list(longer.shape)}, ")
        assert str(list(value.shape)) in misshapen
    added = refusal(rewrite(case, tmp_path, tensors | {"head.extra.weight": torch.ones(3, 4)}))
    assert added == f"{file}: unexpected tensor head.extra.weight"


@pytest.mark.parametrize("name", MAIN)
def test_a_tensor_of_a_layer_beyond_the_configs_is_refused(pair: Load, name: str, tmp_path: Path) -> None:
    tensors = load_file(pair(name).folder / WEIGHTS)
    extra = next(form for form in map(template, reversed(tensors)) if "{}" in form).format(17)
    message = refusal(rewrite(pair(name), tmp_path, tensors | {extra: torch.zeros(3)}))
    assert f"{tmp_path / WEIGHTS}: unexpected tensor {extra}" in message


def test_every_architecture_and_head_has_a_row() -> None:
    """Heads that transformers has dropped are other names of ones it has."""
    tested = {(row.architecture, head) for row in ROWS.values() for head in row.classes}
    missing = {(name, head) for name, found in ARCHITECTURES.items() for head in found.heads} - tested
    for name, head in missing:
        heads = ARCHITECTURES[name].heads
        assert any(heads[head] is heads[other] for architecture, other in tested if architecture == name), head
