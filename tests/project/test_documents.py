"""What the documents promise exists: commands, files, versions, code."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/adding-an-architecture.md"]
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
PATH = re.compile(r"`([\w.-]+(?:/[\w.<>*-]+)+/?|[\w-]+\.(?:py|toml|yml|txt|md))`")
MAKE = re.compile(r"\bmake ([a-z][a-z-]+)")


def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_to_a_file(document: str) -> None:
    folder = (ROOT / document).parent
    missing = [link for link in LINK.findall(text(document)) if not (folder / link).exists()]
    assert missing == []


@pytest.mark.parametrize("document", [*DOCUMENTS, ".ci/run", ".pre-commit-config.yaml"])
def test_every_make_target_exists(document: str) -> None:
    assert {target for target in MAKE.findall(text(document)) if target not in targets()} == set()


def test_the_architecture_names_every_module_and_no_other() -> None:
    folders = re.split(r"^### `(.+)/`$", text("ARCHITECTURE.md"), flags=re.MULTILINE)[1:]
    named = {
        f"{folder}/{module}"
        for folder, section in zip(folders[::2], folders[1::2], strict=True)
        for module in re.findall(r"^- `([\w.]+)`", section, re.MULTILINE)
    }
    roots = ["server/tercet/server", "kernels/tercet/kernels", "clients/python/tercet/client"]
    modules = {path for root in roots for path in (ROOT / root).rglob("*.py")}
    assert named == {path.relative_to(ROOT).as_posix() for path in modules if path.name != "__init__.py"}


def test_the_versions_agree() -> None:
    version = tomllib.loads(text("pyproject.toml"))["project"]["version"]
    assert re.findall(r"^## (\d+\.\d+\.\d+)", text("CHANGELOG.md"), re.MULTILINE)[0] == version


def test_the_readme_begins_with_two_commands() -> None:
    first = re.findall(r"```\n(.*?)```", text("README.md"), re.DOTALL)[0]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]


def test_the_example_of_the_readme_is_python_of_twenty_lines() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", text("README.md"), re.DOTALL)
    ast.parse(example)
    assert len(example.splitlines()) <= 20


def test_the_pins_cover_what_the_project_asks_for() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads(text("pyproject.toml"))["project"]
    asked = [*project["dependencies"], *(need for extra in project["optional-dependencies"].values() for need in extra)]
    lines = [line for line in text("constraints.txt").splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    for line in asked:
        need = Requirement(line)
        assert need.specifier.contains(pins[canonicalize_name(need.name)]), line


def test_the_hooks_run_what_make_installs() -> None:
    config = yaml.safe_load(text(".pre-commit-config.yaml"))
    entries = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    assert entries
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    assert all(entry.startswith(".venv/bin/") for entry in entries)
