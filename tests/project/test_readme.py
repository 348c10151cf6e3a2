"""The README's example and commands, run as they stand against the models that it names."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import packaged
from support.server import RunningServer, running_server
from tercet.server import config

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
CLIENT = re.compile(r"tercet (?!serve)")
COMMANDS = [line for kind, text in BLOCKS if not kind for line in text.splitlines() if CLIENT.match(line)]


def block(language: str) -> str:
    (text,) = (text for kind, text in BLOCKS if kind == language)
    return text


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    models = {"minilm": packaged.minilm(), "smollm2": packaged.smollm2(), "pronounce": packaged.pronounce()}
    with running_server(models, "--threads", "1") as server:
        yield server


def test_the_example_runs(server: RunningServer) -> None:
    assert "127.0.0.1:50051" in block("python")
    code = block("python").replace("127.0.0.1:50051", server.address)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "minilm encoder bert" in result.stdout
    assert "smollm2 decoder llama" in result.stdout
    assert "pronounce seq2seq t5" in result.stdout
    assert "S P " in result.stdout.splitlines()[-3]  # how "sparrow" begins


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_runs(server: RunningServer, line: str) -> None:
    program, *arguments = shlex.split(line)
    command = [str(Path(sys.executable).parent / program), *arguments]
    environment = os.environ | {"TERCET_TARGET": server.address}
    result = subprocess.run(command, env=environment, input="", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() or arguments[0] == "chat"


def test_the_settings_file_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "tercet.toml"
    path.write_text(block("toml"))
    settings = config.load({}, config=path, environment={"TERCET_MAX_LENGTH": "99"})
    assert [(model.name, model.max_rows, model.max_length) for model in settings.models] == [("minilm", 64, 99)]
