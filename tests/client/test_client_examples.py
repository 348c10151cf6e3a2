"""The SDK's examples run and say what they promise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.fake_service import REFUSED

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(fake):
    def run(name, *arguments, stdin=""):
        done = subprocess.run(
            [sys.executable, EXAMPLES / name, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={**os.environ, "TERCET_TARGET": fake.address},
        )
        return done.stdout.splitlines()

    return run


def test_search(example, tmp_path):
    (tmp_path / "lines").write_text("a\n\nabcdefgh\nab\n", encoding="utf-8")
    lines = example("search.py", "abcdef", tmp_path / "lines")
    assert [line.split()[1] for line in lines] == ["abcdefgh", "ab", "a"]  # by the fake's vectors, the longest first


def test_chat(example):
    first, second = example("chat.py", stdin="hello\nagain\n")
    assert first.split() == ["user:hello"] * 200  # the fake says the conversation again and again
    assert second.split() == f"user:hello assistant:{first} user:again".split()[:200]


def test_many(example):
    lines = example("many.py", "echo", stdin="".join(f"{i}\n" for i in range(100)) + f"{REFUSED}\n")
    assert lines[:-1] == [f"{i}\t{i}" for i in range(100)]
    assert lines[-1].startswith(f"{REFUSED}\t! ")
