"""Who may import whom, by the design: read from the syntax trees, then proved by importing with the rest blocked."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE_ROOTS = ("server", "kernels", "clients/python", "protos")


@dataclass(frozen=True)
class Rule:
    """What one part of the package may import beside itself and the standard library."""

    parts: frozenset[str]
    packages: frozenset[str]


def rule(parts: str = "", packages: str = "") -> Rule:
    return Rule(frozenset(parts.split()), frozenset(packages.split()))


# The parts, by the first name below `tercet` or `tercet.server`. What serves the wire and has no name here is one part,
# the front; `tercet.v1` and its like are the protos.
FRONT, PROTOS = "front", "protos"
RULES = {
    "kernels": rule(packages="torch triton"),
    "models": rule("kernels", "torch numpy safetensors gguf"),
    "engine": rule("kernels models wire frames logs garbage", "torch numpy msgspec"),
    "wire": rule(packages="msgspec"),
    "frames": rule("wire", "msgspec"),
    "logs": rule(),
    "garbage": rule(),
    "text": rule(packages="tokenizers sentencepiece google jinja2 gguf msgspec numpy"),
    FRONT: rule(
        "text wire frames logs garbage protos",
        "google grpc grpc_health grpc_reflection grpc_status huggingface_hub msgspec numpy prometheus_client rich "
        "typer uvloop",
    ),
    "verify": rule("engine models text wire front", "torch numpy transformers typer"),
    "client": rule("protos", "google grpc grpc_health grpc_status numpy typer"),
}
WITHOUT_TORCH = ("wire", "frames", "logs", "garbage", "text", FRONT)
TENSOR_LIBRARIES = ("torch", "triton", "transformers")


def modules() -> Iterator[tuple[str, Path]]:
    """The dotted name and the file of every module that we wrote."""
    for root in SOURCE_ROOTS:
        for path in sorted((ROOT / root / "tercet").rglob("*.py")):
            if "_pb2" not in path.name:
                dotted = ".".join(path.relative_to(ROOT / root).with_suffix("").parts)
                yield dotted.removesuffix(".__init__"), path


def part(dotted: str) -> str | None:
    """The part a module of ours belongs to; None for the namespaces `tercet` and `tercet.server` themselves."""
    names = dotted.split(".")[1:]
    if names[:1] == ["server"]:
        names = names[1:]
        return None if not names else names[0] if names[0] in RULES else FRONT
    return None if not names else names[0] if names[0] in RULES else PROTOS


def imported(path: Path) -> Iterator[str]:
    """The dotted names of all imports of a file, wherever they stand."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = str(node.module)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def offences(dotted: str, imports: Iterator[str]) -> list[str]:
    """The imports that a module may not have."""
    mine = part(dotted)
    allowed = RULES.get(mine or "", rule())
    found: list[str] = []
    for name in imports:
        package = name.split(".")[0]
        if package == "tercet":
            if part(name) not in {None, mine, *allowed.parts}:
                found.append(name)
        elif package not in sys.stdlib_module_names | allowed.packages:
            found.append(name)
    return found


@pytest.mark.parametrize(("dotted", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_module_imports_only_what_its_part_may(dotted: str, path: Path) -> None:
    assert offences(dotted, imported(path)) == []


@pytest.mark.parametrize(
    ("dotted", "source"),
    [
        ("tercet.kernels.attention", "from tercet.server import models"),
        ("tercet.kernels.attention", "import numpy"),
        ("tercet.server.models.stack", "from tercet.server.engine import runner"),
        ("tercet.server.service.generation", "def late():\n    import torch.nn"),
        ("tercet.server.text.tokenizer", "from transformers import AutoTokenizer"),
        ("tercet.server.wire", "import tercet.kernels"),
        ("tercet.client.sync", "from tercet.server.wire import Embed"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, dotted: str, source: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert len(offences(dotted, imported(path))) == 1


BLOCKED_IMPORT = """
import importlib, sys

blocked = set(sys.argv[1].split())


class Blocker:
    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        if any(".".join(parts[:end]) in blocked for end in range(1, len(parts) + 1)):
            raise ImportError(f"{name} is blocked")


sys.meta_path.insert(0, Blocker())
for name in sys.argv[2:]:
    importlib.import_module(name)
print(*sorted(name for name in sys.modules if name.split(".")[0] not in sys.stdlib_module_names))
"""


def import_blocked(names: list[str], blocked: tuple[str, ...]) -> set[str]:
    """Imports modules in a new process where others can't be imported; returns all that were loaded."""
    command = [sys.executable, "-c", BLOCKED_IMPORT, " ".join(blocked), *names]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_the_front_end_runs_without_torch() -> None:
    names = [dotted for dotted, _ in modules() if part(dotted) in WITHOUT_TORCH and not dotted.endswith("__main__")]
    assert names
    import_blocked(names, (*TENSOR_LIBRARIES, "tercet.kernels", "tercet.server.models", "tercet.server.engine"))


def test_the_client_runs_without_the_server() -> None:
    names = [dotted for dotted, _ in modules() if part(dotted) == "client" and not dotted.endswith("__main__")]
    loaded = import_blocked(names, (*TENSOR_LIBRARIES, "tercet.kernels", "tercet.server"))
    ours = {name for name in loaded if name.startswith("tercet.")}
    assert all(name.split(".")[1] in {"client", "v1"} for name in ours)


def test_the_kernels_do_not_load_triton_to_serve_on_a_cpu() -> None:
    assert "triton" not in import_blocked(["tercet.kernels"], ("triton", "tercet.server", "transformers"))


@pytest.mark.parametrize("folder", [*(f"{root}/tercet" for root in SOURCE_ROOTS), "kernels", "server"])
def test_a_namespace_folder_has_no_init(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()
