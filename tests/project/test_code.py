"""House rules that no linter knows: short files, checks that survive `python -O`, nothing that runs data as code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = sorted(
    path for root in ("server", "kernels", "clients/python") for path in (ROOT / root / "tercet").rglob("*.py")
)
OTHERS = sorted(path for folder in ("tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))
MOST_LINES = 300
MOST_LINES_LONG = 400  # a kernel with its launcher is one thing; tests are lists of cases, each read alone
LONGER = {"tests/client/test_client_errors.py": "every error of the SDK, against one fake service"}

RUNS_DATA = {"eval", "exec", "torch.load", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "os.system"}
PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "multiprocessing.connection"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [*PACKAGE, *OTHERS], ids=name)
def test_a_file_is_short(path: Path) -> None:
    most = MOST_LINES_LONG if name(path).startswith(("kernels/", "tests/")) else MOST_LINES
    assert (len(path.read_text(encoding="utf-8").splitlines()) > most) == (name(path) in LONGER)


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute or name, else ""."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(source: str) -> Iterator[str]:
    """What package code may not do."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            yield f"line {node.lineno}: assert, which python -O drops"
        elif isinstance(node, ast.Call) and dotted(node.func) in RUNS_DATA and not _weights_only(node):
            yield f"line {node.lineno}: {dotted(node.func)} can run data as code"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for imported in [*module, *(alias.name for alias in node.names)]:
                if imported in PICKLERS:
                    yield f"line {node.lineno}: imports {imported}"


def _weights_only(call: ast.Call) -> bool:
    """Whether torch.load is told to read tensors alone."""
    return any(
        keyword.arg == "weights_only" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        for keyword in call.keywords
    )


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_package_code_keeps_the_rules(path: Path) -> None:
    assert list(offences(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("assert value", 1),
        ("import pickle", 1),
        ("from pickle import loads", 1),
        ("import torch\ntorch.load(path)", 1),
        ("import torch\ntorch.load(path, weights_only=False)", 1),
        ("import torch\ntorch.load(path, weights_only=True)", 0),
        ("def f():\n    return eval(text)", 1),
        ("model.eval()", 0),
    ],
)
def test_the_rules_see(source: str, count: int) -> None:
    assert len(list(offences(source))) == count


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_a_module_says_what_it_is(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not source.strip() or ast.get_docstring(ast.parse(source)), "a module starts with a docstring"
