"""sentence-transformers' Dense modules map pooled vectors; what doesn't fit is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from support.forward import Pair
from tercet.server.models import CheckpointError, Model, load_model

Load = Callable[..., Pair]
Tensors = dict[str, torch.Tensor]

TYPE = "sentence_transformers.models."
TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": f"{TYPE}Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{TYPE}Pooling"}
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": f"{TYPE}Dense"}
WIDER = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.base.modules.dense.Dense"}
NORMALIZE = {"idx": 4, "name": "4", "path": "4_Normalize", "type": f"{TYPE}Normalize"}
CONFIG = {
    "in_features": 48,
    "out_features": 20,
    "bias": True,
    "activation_function": "torch.nn.modules.activation.Tanh",
}
IDENTITY = {
    "in_features": 20,
    "out_features": 33,
    "bias": False,
    "activation_function": "torch.nn.modules.linear.Identity",
}


@pytest.fixture
def folder(pair: Load, tmp_path: Path) -> Path:
    """A checkpoint with the modules.json of two Dense modules."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(pair("bert").folder / name, tmp_path)
    modules = [TRANSFORMER, POOLING, DENSE, WIDER, NORMALIZE]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    return tmp_path


def save(folder: Path, config: dict[str, Any], *, pickled: bool = False, **tensors: torch.Tensor) -> Tensors:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    drawn = {"linear.weight": torch.randn(config["out_features"], config["in_features"])}
    if config["bias"]:
        drawn["linear.bias"] = torch.randn(config["out_features"])
    drawn |= {name.replace("_", "."): value for name, value in tensors.items()}
    if pickled:
        torch.save(drawn, folder / "pytorch_model.bin")
    else:
        save_file(drawn, folder / "model.safetensors")
    return drawn


def load(folder: Path, **options: Any) -> Model:
    return load_model(folder, device=torch.device("cpu"), **options)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vectors_are_mapped_in_float32(folder: Path, dtype: str) -> None:
    first, second = save(folder / "2_Dense", CONFIG), save(folder / "3_Dense", IDENTITY)
    model, vectors = load(folder, dtype=dtype), torch.randn(7, 48)
    hidden = functional.linear(vectors, first["linear.weight"], first["linear.bias"]).tanh()
    assert model.embedding_size == 33
    assert model.hidden_size == 48
    torch.testing.assert_close(model.project(vectors), hidden @ second["linear.weight"].t())


def test_without_dense_modules_vectors_stay(pair: Load, folder: Path) -> None:
    vectors = torch.randn(3, 48)
    (folder / "modules.json").write_text(json.dumps([TRANSFORMER, POOLING, NORMALIZE]))
    for model in (pair("bert").ours, load(folder)):
        assert model.embedding_size == 48
        assert torch.equal(model.project(vectors), vectors)


def test_a_pickled_module_needs_permission(folder: Path) -> None:
    save(folder / "2_Dense", CONFIG, pickled=True)
    save(folder / "3_Dense", IDENTITY)
    file = folder / "2_Dense" / "pytorch_model.bin"
    assert refusal(folder) == f"{file}: weights in a pickle are read with --allow-pickle alone"
    assert load(folder, allow_pickle=True).embedding_size == 33


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    first, second = folder / "2_Dense", folder / "3_Dense"
    save(second, IDENTITY)
    assert refusal(folder) == f"{first / 'config.json'}: No such file or directory"
    save(first, CONFIG | {"in_features": 47})
    assert refusal(folder) == f"{first / 'config.json'}: in_features is 47, what it reads has 48 features"
    save(first, CONFIG | {"activation_function": "os.system"})
    assert refusal(folder).startswith(f'{first / "config.json"}: activation_function is "os.system", it must be ')
    save(first, CONFIG | {"activation_function": 7})
    assert "activation_function is 7" in refusal(folder)
    save(first, CONFIG, linear_weight=torch.zeros(20, 49))
    assert "tensor linear.weight has shape [20, 49]" in refusal(folder)
    save(first, CONFIG, linear_scale=torch.zeros(20))
    assert refusal(folder) == f"{first / 'model.safetensors'}: unexpected tensor linear.scale"
    save(first, CONFIG | {"bias": False}, linear_bias=torch.zeros(20))
    assert "unexpected tensor linear.bias" in refusal(folder)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({}, "not a JSON array"),
        ([TRANSFORMER, DENSE, POOLING], "[1]: Dense before Pooling is not supported"),
        ([TRANSFORMER, POOLING, DENSE | {"path": "../2_Dense"}], '[2].path is "../2_Dense", it must lie in the folder'),
        ([TRANSFORMER, POOLING, DENSE | {"path": "/2_Dense"}], '[2].path is "/2_Dense", it must lie in the folder'),
    ],
)
def test_bad_lists_of_modules_are_refused(folder: Path, modules: object, message: str) -> None:
    save(folder / "2_Dense", CONFIG)
    (folder / "modules.json").write_text(json.dumps(modules))
    assert refusal(folder) == f"{folder / 'modules.json'}: {message}"
