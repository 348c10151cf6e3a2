"""Where checkpoints come from: folders, .gguf files and the hub, which is a stand-in here."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from tercet.server.config import ModelSettings
from tercet.server.sources import SourceError, resolve, weight_bytes

NOT_FOUND = SimpleNamespace(status_code=404, headers={}, request=None)
REPOSITORY = {
    "config.json": True,
    "tokenizer.json": True,
    "model-00001-of-00002.safetensors": True,
    "model.safetensors.index.json": True,
    "1_Pooling/config.json": True,
    "vocab.txt": True,
    "spiece.model": True,
    "chat_template.jinja": True,
    "pytorch_model.bin": False,
    "modeling_custom.py": False,
    "model.pkl": False,
    "tf_model.h5": False,
    "onnx/model.onnx": False,
    "onnx/model.safetensors": False,
}


def test_a_hub_id_is_downloaded_without_what_may_hold_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = {}

    def download(
        repository: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        asked.update(repository=repository, revision=revision, allow=allow_patterns, ignore=ignore_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve(ModelSettings("m", "org/name", revision="v2")) == tmp_path
    assert (asked["repository"], asked["revision"]) == ("org/name", "v2")

    def matches(file: str, patterns: str) -> bool:
        return any(fnmatch(file, pattern) for pattern in asked[patterns])

    assert {file: matches(file, "allow") and not matches(file, "ignore") for file in REPOSITORY} == REPOSITORY


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError("offline"), "m.source: org/name@v2 is no local path, and the hub can't be reached"),
        (OSError("no route"), "and the hub can't be reached"),
        (
            RepositoryNotFoundError("404", response=NOT_FOUND),
            "is neither a local path nor a checkpoint of the hub that you may read",
        ),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str):
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(SourceError) as raised:
        resolve(ModelSettings("m", "org/name", revision="v2"))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_local_checkpoints(tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(b"x" * 5)
    (tmp_path / "a.safetensors").write_bytes(b"x" * 3)
    (tmp_path / "b.safetensors").write_bytes(b"x" * 4)
    (tmp_path / "c.safetensors").symlink_to("nowhere")
    assert resolve(ModelSettings("m", str(tmp_path))) == tmp_path
    assert resolve(ModelSettings("m", str(tmp_path / "model.gguf"))) == tmp_path / "model.gguf"
    assert weight_bytes(tmp_path) == 7
    assert weight_bytes(tmp_path / "model.gguf") == 5


@pytest.mark.parametrize(
    "source", ["org/name/more", "/org/name", "./name", "name", "org/name.gguf", "../x/y", "~a/x", "x" * 5000, "x\0y"]
)
def test_what_is_neither_there_nor_a_hub_id(source: str):
    with pytest.raises(SourceError, match=r"models\.m\.source: .* is not there"):
        resolve(ModelSettings("m", source))
