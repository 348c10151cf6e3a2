"""Weights in files of torch.save: read where the user allows it, single and sharded, new and old, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.forward import Pair, encode, relative_error, texts
from tercet.server.models import CheckpointError, Model, load_model

CPU = torch.device("cpu")
SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
INDEX = f"{PICKLED}.index.json"

Load = Callable[[str], Pair]


def copy(pair: Pair, folder: Path) -> dict[str, torch.Tensor]:
    """The config of a checkpoint in another folder; its tensors."""
    shutil.copy(pair.folder / "config.json", folder)
    return load_file(pair.folder / SAFETENSORS)


def load(folder: Path, **options: Any) -> Model:
    return load_model(folder, device=CPU, allow_pickle=True, **options)


def refusal(folder: Path, *, allow_pickle: bool = True) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, device=CPU, allow_pickle=allow_pickle)
    message = str(caught.value)
    assert "\n" not in message
    return message


def same(ours: Model, other: Model) -> bool:
    return all(map(torch.equal, encode(ours, texts(9, 4)), encode(other, texts(9, 4))))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_a_single_file_is_read_if_that_is_allowed(pair: Load, tmp_path: Path, zipped: bool) -> None:
    tensors = copy(pair("bert"), tmp_path)
    torch.save(tensors, tmp_path / PICKLED, _use_new_zipfile_serialization=zipped)
    assert same(load(tmp_path), pair("bert").ours)
    expected = f"{tmp_path / PICKLED}: weights in a pickle are read with --allow-pickle alone"
    assert refusal(tmp_path, allow_pickle=False) == expected


def test_shards_are_read(pair: Load, tmp_path: Path) -> None:
    tensors = copy(pair("bert"), tmp_path)
    index: dict[str, str] = {}
    for number in range(3):
        shard = {name: tensors[name] for name in sorted(tensors)[number::3]}
        torch.save(shard, tmp_path / f"pytorch_model-{number}.bin")
        index |= dict.fromkeys(shard, f"pytorch_model-{number}.bin")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index}))
    assert same(load(tmp_path), pair("bert").ours)
    assert refusal(tmp_path, allow_pickle=False).startswith(f"{tmp_path / INDEX}: ")
    (tmp_path / "pytorch_model-1.bin").unlink()
    assert refusal(tmp_path) == f"{tmp_path / 'pytorch_model-1.bin'}: no such file"


def test_safetensors_are_preferred(pair: Load, tmp_path: Path) -> None:
    tensors = copy(pair("bert"), tmp_path)
    save_file(tensors, tmp_path / SAFETENSORS)
    (tmp_path / PICKLED).write_bytes(b"not read")
    assert same(load(tmp_path), pair("bert").ours)
    assert same(load_model(tmp_path, device=CPU), pair("bert").ours)


def test_names_of_one_storage_are_one_weight(pair: Load, tmp_path: Path) -> None:
    """torch.save keeps what is tied under each of its names, and slices as what they are slices of."""
    case = pair("t5")
    tensors = copy(case, tmp_path)
    words = torch.cat([tensors["shared.weight"], torch.ones(5, 40)])[:-5]
    for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"):
        tensors[f"{name}.weight"] = words
    torch.save(tensors, tmp_path / PICKLED)
    model, hidden = load(tmp_path), torch.randn(3, 40)
    assert model.spec.head is not None
    assert model.spec.head.tied
    assert model.parameters == case.ours.parameters
    assert torch.equal(model.logits(hidden), case.ours.logits(hidden))
    tensors["lm_head.weight"] = words + 1
    torch.save(tensors, tmp_path / PICKLED)
    own = load(tmp_path)
    assert relative_error(own.logits(hidden), hidden * 40**-0.5 @ (words + 1).t()) < 1e-5


class Malice:
    """What a pickle can do that should not be read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("touched"),)


def test_what_is_no_tensor_is_refused_and_never_run(
    pair: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tensors: dict[str, Any] = copy(pair("bert"), tmp_path)
    for content in (tensors | {"epoch": Malice()}, Malice()):
        torch.save(content, tmp_path / PICKLED)
        assert refusal(tmp_path).startswith(f"{tmp_path / PICKLED}: not a readable file of tensors: ")
        assert not (tmp_path / "touched").exists()
    torch.save(tensors | {"epoch": 7}, tmp_path / PICKLED)
    assert refusal(tmp_path) == f'{tmp_path / PICKLED}: "epoch" is no tensor'
    torch.save(list(tensors.values()), tmp_path / PICKLED)
    assert refusal(tmp_path) == f"{tmp_path / PICKLED}: holds no tensors by name"
    name = "embeddings.LayerNorm.bias"
    torch.save(tensors | {name: torch.zeros(48, dtype=torch.int32)}, tmp_path / PICKLED)
    assert refusal(tmp_path) == f"{tmp_path / PICKLED}: tensor {name} is stored as int32, which is no weight"


@pytest.mark.parametrize("kept", [0, 100, 20_000, -100])
def test_damaged_files_are_refused(pair: Load, tmp_path: Path, kept: int) -> None:
    torch.save(copy(pair("bert"), tmp_path), tmp_path / PICKLED)
    (tmp_path / PICKLED).write_bytes((tmp_path / PICKLED).read_bytes()[:kept])
    assert refusal(tmp_path).startswith(f"{tmp_path / PICKLED}: not a readable file of tensors: ")


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_any_storage_is_computed_with_in_any_precision(
    pair: Load, tmp_path: Path, stored: torch.dtype, pickled: bool, dtype: str
) -> None:
    tensors = {name: value.to(stored) for name, value in copy(pair("bert"), tmp_path).items()}
    if pickled:
        torch.save(tensors, tmp_path / PICKLED)
    else:
        save_file(tensors, tmp_path / SAFETENSORS)
    model = load(tmp_path, dtype=dtype)
    for name, parameter in model.transformer.named_parameters():
        assert parameter.dtype == getattr(torch, dtype), name
    name = "encoder.layer.1.attention.self.key"
    weight, bias = (tensors[f"{name}.{part}"].to(model.dtype).float() for part in ("weight", "bias"))
    product = model.transformer.get_submodule("encoder.layers.1.attention.body.qkv")
    keys = product(torch.eye(48, dtype=model.dtype))[:, 48:96]  # the weight itself may be packed
    assert torch.equal(keys, (weight.T + bias).to(model.dtype))
    assert all(hidden.isfinite().all() for hidden in encode(model, texts(9, 4)))
