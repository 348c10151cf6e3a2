"""What importing the SDK loads. A clock would measure the machine; the list of modules does not lie."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "triton", "transformers", "tokenizers", "msgspec", "tercet.server", "tercet.kernels"}
# Fetched when a client is made, not by the package itself: `tercet --help` and the errors do without.
LATE = {"grpc", "grpc.aio", "numpy", "asyncio", "google.protobuf", "typer", "rich"}


def modules_after(code, *options):
    program = f"{code}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, *options, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("options", [[], ["-O"]])
def test_the_package_alone_is_light(options):
    assert not modules_after("import tercet.client", *options) & (HEAVY | LATE)


def test_errors_and_results_need_no_grpc():
    assert not modules_after("from tercet.client import Generation, InvalidArgument") & (HEAVY | LATE)


@pytest.mark.parametrize("name", ["Client", "AsyncClient"])
def test_the_clients_load_nothing_of_the_server(name):
    loaded = modules_after(f"from tercet.client import {name}")
    assert "grpc" in loaded
    assert not loaded & (HEAVY | {"typer", "rich"})


def test_the_command_line_loads_grpc_only_for_a_call():
    loaded = modules_after("import tercet.client.cli")
    assert "typer" in loaded
    assert not loaded & (HEAVY | {"grpc", "numpy", "google.protobuf"})


def test_a_command_loads_nothing_of_the_server():
    code = "import sys, contextlib\nfrom tercet.client.cli import app\nwith contextlib.redirect_stdout(sys.stderr):\n"
    code += " app(['health', '--target', '127.0.0.1:1', '--timeout', '1'], standalone_mode=False)"
    loaded = modules_after(code)
    assert "grpc" in loaded
    assert not loaded & HEAVY
