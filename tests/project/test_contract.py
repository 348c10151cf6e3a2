"""The protos: every part is commented, and the lock notices a broken promise."""

import importlib.util
import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
OURS = [path for path in PROTOS if "oip" not in path.parts]

BEFORE = """
syntax = "proto3";
package trial;
message Request {
  reserved 9;
  reserved "old";
  string model = 1;
  optional float temperature = 2;
  repeated uint32 ids = 3;
  oneof input { string text = 4; bytes data = 5; }
  message Inner { bool flag = 1; }
}
enum Kind { KIND_UNSPECIFIED = 0; KIND_ONE = 1; }
service Trial { rpc Ask(Request) returns (stream Request); }
"""


@pytest.fixture(scope="module")
def contract() -> ModuleType:
    spec = importlib.util.spec_from_file_location("protos_contract", ROOT / "protos" / "contract.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def changed(contract: ModuleType, folder: Path, old: str, new: str) -> list[str]:
    """What the lock says when `old` becomes `new` in a released proto."""
    locked = compiled(contract, folder / "before", BEFORE)
    assert old in BEFORE
    return contract.breaks(locked, compiled(contract, folder / "after", BEFORE.replace(old, new)))


def compiled(contract: ModuleType, folder: Path, text: str) -> dict[str, dict[str, str]]:
    folder.mkdir()
    (folder / "trial.proto").write_text(text)
    return contract.read_contract(folder)


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("string model = 1", "string model = 6", "Request 1"),
        ("string model = 1", "bytes model = 1", "Request 1"),
        ("string model = 1", "string name = 1", "Request 1"),
        ("string model = 1", "repeated string model = 1", "Request 1"),
        ("optional float temperature", "float temperature", "Request 2"),
        ("repeated uint32 ids = 3;", "", "Request 3"),
        ("repeated uint32 ids = 3;", "reserved 3;", "Request 3"),
        ("bytes data = 5; }", "} bytes data = 5;", "Request 5"),
        ("reserved 9;", "string reused = 9;", "Request 9"),
        ("reserved 9;", "", "Request 9"),
        ('reserved "old";', "", "Request old"),
        ("message Inner { bool flag = 1; }", "", "Request.Inner"),
        ("bool flag = 1", "bool flag = 2", "Inner 1"),
        ("KIND_ONE = 1", "KIND_ONE = 2", "Kind 1"),
        ("KIND_ONE = 1", "KIND_FIRST = 1", "Kind 1"),
        ("KIND_ONE = 1;", "", "Kind 1"),
        ("(stream Request)", "(Request)", "Trial Ask"),
        ("rpc Ask(Request) returns (stream Request);", "", "Trial Ask"),
    ],
)
def test_a_broken_promise_is_named(contract: ModuleType, tmp_path: Path, old: str, new: str, names: str) -> None:
    problems = changed(contract, tmp_path, old, new)
    assert problems
    assert names in problems[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("string model = 1;", "string model = 1; string added = 10;"),
        ("repeated uint32 ids = 3;", 'reserved 3; reserved "ids";'),
        ("KIND_ONE = 1;", "KIND_ONE = 1; KIND_TWO = 2;"),
        ("KIND_ONE = 1;", 'reserved 1; reserved "KIND_ONE";'),
        ("message Request", "message Another { string model = 1; } message Request"),
        ("  string model = 1;", "  // A comment.\n  string model = 1;"),
    ],
)
def test_a_kept_promise_is_silent(contract: ModuleType, tmp_path: Path, old: str, new: str) -> None:
    assert changed(contract, tmp_path, old, new) == []


def test_the_lock_is_the_protos(contract: ModuleType) -> None:
    assert json.loads(contract.LOCK.read_text()) == contract.read_contract(contract.ROOT)


def test_the_stubs_are_what_the_protos_generate(contract: ModuleType) -> None:
    assert contract.stale_stubs() == []


def test_check_fails_on_a_stale_or_broken_tree(
    contract: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = tmp_path / "trial.proto"
    proto.write_text(BEFORE)
    monkeypatch.setattr(contract, "ROOT", tmp_path)
    monkeypatch.setattr(contract, "LOCK", tmp_path / "lock.json")
    assert contract.main(["--check"]) == 1
    assert "trial_pb2.py: not what the protos generate" in capsys.readouterr().err
    assert contract.main([]) == 0
    assert contract.main(["--check"]) == 0

    proto.write_text(BEFORE.replace("KIND_ONE = 1;", "KIND_ONE = 1; KIND_TWO = 2;"))
    assert contract.main(["--check"]) == 1
    assert contract.main([]) == 0
    assert contract.main(["--check"]) == 0

    lock = contract.LOCK.read_text()
    proto.write_text(BEFORE)
    assert contract.main([]) == 1
    assert "KIND_TWO" in capsys.readouterr().err
    assert contract.LOCK.read_text() == lock

    proto.write_text("syntax = nonsense")
    assert contract.main(["--check"]) == 1


DECLARATION = re.compile(
    r"(message|enum|service|oneof|rpc)\s|(optional\s|repeated\s)?[\w.<>, ]+\s\w+\s*=\s*\d+|[A-Z0-9_]+\s*=\s*\d+"
)


def undocumented(text: str) -> list[str]:
    """Declarations without a comment on the line above."""
    lines = [line.strip() for line in text.splitlines()]
    return [line for above, line in pairwise(lines) if DECLARATION.match(line) and not above.startswith("//")]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_every_declaration_is_commented(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("//")
    assert undocumented(text) == []


@pytest.mark.parametrize(
    "bare", ["string a = 1;", "optional uint32 a = 1;", "A_ONE = 1;", "message A {", "rpc A(B) returns (C);"]
)
def test_a_bare_declaration_is_found(bare: str) -> None:
    assert undocumented(f"// Commented.\nstring b = 2;\n{bare}\n") == [bare]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_enums_start_unspecified(path: Path) -> None:
    zeros = re.findall(r"^\s*([A-Z0-9_]+)\s*=\s*0;", path.read_text(), re.MULTILINE)
    assert all(name.endswith("_UNSPECIFIED") for name in zeros)
