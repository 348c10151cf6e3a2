"""Where checkpoints come from: folders, .gguf files and the hub, which is a stand-in here."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from tercet.server.config import ModelSettings
from tercet.server.sources import SourceError, resolve, resolve_adapter, weight_bytes

NOT_FOUND = SimpleNamespace(status_code=404, headers={}, request=None)
REPOSITORY = {
    "config.json": True,
    "tokenizer.json": True,
    "model-00001-of-00002.safetensors": True,
    "model.safetensors.index.json": True,
    "1_Pooling/config.json": True,
    "vocab.txt": True,
    "spiece.model": True,
    "source.spm": True,
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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A repository of the hub with these files, and what is local of it after it was asked for."""

    def have(*files: str) -> list[str]:
        asked: list[str] = []

        def download(_: str, *, allow_patterns: list[str], ignore_patterns: list[str], **__: object) -> str:
            def wanted(file: str) -> bool:
                among = any(fnmatch(file, pattern) for pattern in allow_patterns)
                return among and not any(fnmatch(file, pattern) for pattern in ignore_patterns)

            asked.extend(file for file in files if wanted(file))
            for file in asked:
                (tmp_path / file).parent.mkdir(exist_ok=True)
                (tmp_path / file).touch()
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return asked

    return have


@pytest.mark.parametrize(
    ("files", "allowed", "expected"),
    [
        (("model.safetensors", "pytorch_model.bin"), True, ["model.safetensors"]),
        (("config.json", "pytorch_model.bin"), False, ["config.json"]),
        (("config.json", "pytorch_model.bin", "training_args.bin"), True, ["config.json", "pytorch_model.bin"]),
        (("pytorch_model-00001-of-00002.bin", "x.pkl"), True, ["pytorch_model-00001-of-00002.bin"]),
        (
            ("model.safetensors", "2_Dense/config.json", "2_Dense/model.safetensors", "onnx/model.safetensors"),
            False,
            ["model.safetensors", "2_Dense/config.json", "2_Dense/model.safetensors"],
        ),
        (
            ("model.safetensors", "2_Dense/config.json", "2_Dense/pytorch_model.bin"),
            True,
            ["model.safetensors", "2_Dense/config.json", "2_Dense/pytorch_model.bin"],
        ),
    ],
)
def test_pickles_are_downloaded_only_where_they_are_allowed_and_needed(
    hub: Callable[..., list[str]], files: tuple[str, ...], allowed: bool, expected: list[str]
):
    asked = hub(*files)
    resolve(ModelSettings("m", "org/name", allow_pickle=allowed))
    assert asked == expected


def test_an_adapter_is_a_folder_or_a_hub_id(hub: Callable[..., list[str]], tmp_path: Path):
    assert resolve_adapter(ModelSettings("m", "org/name")) is None
    assert resolve_adapter(ModelSettings("m", "org/name", adapter=str(tmp_path))) == tmp_path
    asked = hub("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
    assert resolve_adapter(ModelSettings("m", "org/name", adapter="org/adapter")) == tmp_path
    assert asked == ["adapter_config.json", "adapter_model.safetensors"]
    (tmp_path / "file").touch()
    for source, reason in ((str(tmp_path / "file"), "is no folder"), ("./nowhere", "is not there")):
        with pytest.raises(SourceError, match=rf"models\.m\.adapter: .* {reason}"):
            resolve_adapter(ModelSettings("m", "org/name", adapter=source))


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
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 6)  # the same weights once more
    assert weight_bytes(tmp_path) == 7
    assert weight_bytes(tmp_path / "model.gguf") == 5
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert weight_bytes(tmp_path) == 6


@pytest.mark.parametrize(
    "source", ["org/name/more", "/org/name", "./name", "name", "org/name.gguf", "../x/y", "~a/x", "x" * 5000, "x\0y"]
)
def test_what_is_neither_there_nor_a_hub_id(source: str):
    with pytest.raises(SourceError, match=r"models\.m\.source: .* is not there"):
        resolve(ModelSettings("m", source))
