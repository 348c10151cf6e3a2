"""What a user gets from `pip install tercet`: the right files, and an SDK that needs neither torch nor the server."""

import email
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def build(folder: Path, *targets: str, source: Path = ROOT) -> list[Path]:
    """Builds with the backend itself: no isolated environment, no index."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    command += [argument for target in targets for argument in ("-t", target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist of this tree."""
    sdist, wheel = sorted(build(tmp_path_factory.mktemp("dist"), "wheel", "sdist"), key=lambda path: path.suffix)
    assert wheel.name == f"tercet-{PROJECT['version']}-py3-none-any.whl"
    return wheel, sdist


@pytest.fixture(scope="module")
def site(artifacts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip would lay it out."""
    folder = tmp_path_factory.mktemp("site")
    shutil.unpack_archive(artifacts[0], folder, "zip")
    return folder


@pytest.fixture(scope="module")
def metadata(site: Path) -> Message:
    (path,) = site.glob("*.dist-info/METADATA")
    return email.message_from_string(path.read_text())


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def sources() -> set[str]:
    """Every file of the package in the tree, as the wheel should name it."""
    roots = [ROOT / root for root in ("server", "kernels", "clients/python", "protos")]
    found = {path.relative_to(root) for root in roots for path in (root / "tercet").rglob("*") if path.is_file()}
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_package_and_nothing_else(site: Path) -> None:
    packaged = {name for name in files(site) if ".dist-info/" not in name}
    assert packaged == sources()
    assert {PurePosixPath(name).parts[0] for name in packaged} == {"tercet"}
    assert "tercet/__init__.py" not in packaged
    typed = {PurePosixPath(name).parent.as_posix() for name in packaged if name.endswith("/py.typed")}
    assert typed >= {"tercet/client", "tercet/kernels", "tercet/server", "tercet/v1"}
    assert {"tercet/v1/embedding_pb2.py", "tercet/v1/embedding_pb2.pyi", "tercet/v1/embedding_pb2_grpc.py"} <= packaged
    assert {name.split("/")[-1] for name in files(site) if ".dist-info/licenses/" in name} == {"LICENSE"}


def test_the_sdist_builds_the_same_wheel(artifacts: tuple[Path, Path], site: Path, tmp_path: Path) -> None:
    known = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python before 3.11.4 has none
    shutil.unpack_archive(artifacts[1], tmp_path / "source", **known)
    (source,) = (tmp_path / "source").iterdir()
    assert not {path.name for path in source.iterdir()} & {"tests", "benchmarks", "deploy", "shared", ".venv"}
    (again,) = build(tmp_path / "dist", "wheel", source=source)
    with zipfile.ZipFile(again) as wheel:
        assert {name for name in wheel.namelist() if not name.endswith("/")} == files(site)


def test_metadata(metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_all("Provides-Extra") == ["dev", "sentencepiece", "server", "verify"]
    assert "## " in str(metadata.get_payload())


def test_the_sdk_alone_asks_for_little(metadata: Message) -> None:
    needs = {canonicalize_name(need) for need in closure(requirements(metadata))}
    assert {"grpcio", "protobuf", "numpy"} <= needs
    assert not needs & {"torch", "triton", "safetensors", "tokenizers", "huggingface-hub", "msgspec", "transformers"}


def requirements(metadata: Message) -> tuple[str, ...]:
    """What is required without an extra."""
    declared = [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]
    return tuple(need.name for need in declared if need.marker is None or need.marker.evaluate({"extra": ""}))


@cache
def closure(names: tuple[str, ...]) -> frozenset[str]:
    """The distributions that installing these brings."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found.add(name)
            waiting += requirements(distribution(name).metadata)
    return frozenset(found)


INSTALLED = """
import sys

site, root, blocked = sys.argv[1], sys.argv[2], set(sys.stdin.read().split())


class Blocker:
    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        if any(".".join(parts[:end]) in blocked for end in range(1, len(parts) + 1)):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocker())
editable = ("server", "kernels", "clients/python", "protos")
sys.path[:] = [site, *(path for path in sys.path if path not in {f"{root}/{folder}" for folder in editable})]
sys.argv[:] = ["tercet", *sys.argv[3:]]
"""


@pytest.fixture(scope="module")
def foreign(metadata: Message) -> str:
    """Every importable name here that installing the SDK alone would not bring."""
    brought = closure(requirements(metadata)) | {"tercet"}
    installed = packages_distributions().items()
    absent = {name for name, providers in installed if not brought & {canonicalize_name(one) for one in providers}}
    assert {"torch", "triton", "tokenizers", "msgspec", "transformers"} <= absent
    return " ".join(absent)


def run_installed(site: Path, foreign: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code where `tercet` is the wheel's and nothing foreign can be imported."""
    command = [sys.executable, "-c", INSTALLED + code, str(site), str(ROOT), *arguments]
    return subprocess.run(command, input=foreign, capture_output=True, text=True, check=False, cwd=site)


def test_the_sdk_of_the_wheel_runs_on_what_it_asks_for(site: Path, foreign: str) -> None:
    code = """
import tercet.client
from tercet.client import AsyncClient, Client
print(tercet.client.__file__)
"""
    result = run_installed(site, foreign, code)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(site)


def test_the_command_of_the_sdk_alone(site: Path, foreign: str) -> None:
    run = "from tercet.client.cli import main\nmain()\n"
    listed = run_installed(site, foreign, run, "--help")
    assert listed.returncode == 0, listed.stderr
    assert all(command in listed.stdout for command in ("embed", "generate", "chat", "models", "health"))

    refused = run_installed(site, foreign, run, "serve", "x=y")
    assert refused.returncode != 0
    assert "tercet[server]" in refused.stderr
    assert "Traceback" not in refused.stderr
