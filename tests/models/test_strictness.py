"""Loading is strict: of every architecture with every head, no tensor may be missing, left over or misshapen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from support.architectures import ROWS, cases, representatives, template, used
from support.forward import Pair
from support.loading import WEIGHTS, refusal, rewrite
from tercet.server.models import load
from tercet.server.models.architectures import ARCHITECTURES
from tercet.server.models.checkpoint.folder import Folder

if TYPE_CHECKING:
    from tercet.server.models.checkpoint.source import StoredTensor

# The rows that stand for an architecture as a whole.
MAIN = {name: row for name, row in ROWS.items() if not row.heads}
# Of two names that a tensor may have, an error that it is missing says the commoner.
COMMONER = {"encoder.embed_tokens.weight": "shared.weight", "model.encoder.embed_tokens.weight": "model.shared.weight"}

Load = Callable[..., Pair]


def names_to_change(pair: Load, name: str, head: str) -> list[str]:
    """One name of each kind in a head's file that the first head's doesn't have."""
    first = ROWS[name].classes[0]
    before = () if head == first else used(first, Folder(pair(name, first).folder).tensors)
    return representatives(used(head, Folder(pair(name, head).folder).tensors), but=before)


@pytest.mark.parametrize(("name", "head"), cases(MAIN))
def test_dropping_renaming_or_reshaping_a_tensor_or_adding_one_is_refused_with_its_name(
    pair: Load, name: str, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file lists its tensors as the case has it; below and elsewhere files are written that are as wrong."""
    folder = pair(name, head).folder
    checkpoint = Folder(folder)
    stored, file = checkpoint.tensors, folder / WEIGHTS
    monkeypatch.setattr(load, "open_checkpoint", lambda *_, **__: checkpoint)

    def refused(*changed: StoredTensor, without: str = "") -> str:
        kept = (tensor for other, tensor in stored.items() if other != without)
        checkpoint.tensors = {tensor.name: tensor for tensor in (*kept, *changed)}
        return refusal(folder)

    for tensor in names_to_change(pair, name, head):
        value = stored[tensor]
        assert refused(without=tensor) == f"{file}: missing tensor {COMMONER.get(tensor, tensor)}"
        renamed = replace(value, name=f"{tensor}s")
        assert refused(renamed, without=tensor) == f"{file}: unexpected tensor {tensor}s"
        longer = (value.shape[0] + 1, *value.shape[1:])
        misshapen = refused(replace(value, shape=longer))
        assert misshapen.startswith(f"{file}: tensor {tensor} has shape {list(longer)}, ")
        assert str(list(value.shape)) in misshapen
    added = replace(next(iter(stored.values())), name="head.extra.weight")
    assert refused(added) == f"{file}: unexpected tensor head.extra.weight"


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
