"""Hugging Face folders: config.json, and weights in one file or in shards that an index lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

from tercet.server.models.checkpoint.config import read_json, shorten
from tercet.server.models.checkpoint.safetensors import SafetensorsFile
from tercet.server.models.checkpoint.torch_file import TorchFile
from tercet.server.models.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from tercet.server.models.checkpoint.source import StoredTensor, TensorFile


@dataclass(frozen=True)
class Storage:
    """A name that weights are stored under, and what reads such a file."""

    single: str
    opened: type[SafetensorsFile | TorchFile]

    @property
    def index(self) -> str:
        """The file that lists shards."""
        return f"{self.single}.index.json"

    @property
    def pickled(self) -> bool:
        """Whether the user must allow it."""
        return self.opened is TorchFile


# The first that a folder has is read.
MODEL = (Storage("model.safetensors", SafetensorsFile), Storage("pytorch_model.bin", TorchFile))
ADAPTER = (Storage("adapter_model.safetensors", SafetensorsFile), Storage("adapter_model.bin", TorchFile))


class Weights:
    """The tensors of a folder, whatever their files. Opening them raises CheckpointError."""

    def __init__(self, folder: Path, storages: Sequence[Storage] = MODEL, *, allow_pickle: bool = False) -> None:
        self._files: dict[Path, TensorFile] = {}
        storage, self.weights_file = _find(folder, storages)
        if storage.pickled and not allow_pickle:
            raise CheckpointError(f"{self.weights_file}: weights in a pickle are read with --allow-pickle alone")
        single = self.weights_file.name == storage.single
        self.tensors = {t.name: t for t in self._open(self.weights_file, storage)} if single else self._sharded(storage)

    def _sharded(self, storage: Storage) -> dict[str, StoredTensor]:
        index = self.weights_file
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointError(f"{index}: weight_map must be an object of tensor names to file names")
        tensors: dict[str, StoredTensor] = {}
        for shard in sorted(set(shards.values())):
            if PurePath(shard).name != shard or "\\" in shard or shard in ("", "..") or "\0" in shard:
                raise CheckpointError(f"{index}: weight_map names {shorten(shard)}, which is not a file of the folder")
            for tensor in self._open(index.with_name(shard), storage):
                if shards.get(tensor.name) != shard:
                    raise CheckpointError(
                        f"{tensor.file}: unexpected tensor {tensor.name}: {index.name} doesn't list it here"
                    )
                tensors[tensor.name] = tensor
        for name, shard in shards.items():
            if name not in tensors:
                raise CheckpointError(f"{index.with_name(shard)}: missing tensor {name}, which {index.name} lists")
        return tensors

    def _open(self, file: Path, storage: Storage) -> list[StoredTensor]:
        self._files[file] = storage.opened(file)
        return self._files[file].tensors

    def read(self, tensor: StoredTensor) -> Tensor:
        """One tensor, a view of the file; it is read when it is copied."""
        return self._files[tensor.file].read(tensor)


class Folder(Weights):
    """A folder as transformers' `save_pretrained` writes it."""

    format: Literal["huggingface"] = "huggingface"

    def __init__(self, folder: Path, *, allow_pickle: bool = False) -> None:
        self.config_file = folder / "config.json"
        self.config = read_json(self.config_file)
        super().__init__(folder, allow_pickle=allow_pickle)


def _find(folder: Path, storages: Sequence[Storage]) -> tuple[Storage, Path]:
    names = [(storage, name) for storage in storages for name in (storage.single, storage.index)]
    for storage, name in names:
        if (folder / name).exists():
            return storage, folder / name
    raise CheckpointError(f"{folder}: none of {', '.join(name for _, name in names)} is there")
