"""A fake service, and the two clients behind one face, so that a test says once what both must do."""

import asyncio
import os
import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from support.fake_service import fake_service
from tercet.client import AsyncClient, Client, cli


class Caller:
    """Calls methods of a synchronous client."""

    def __init__(self, target, **options):
        self.target = target
        self.options = options

    def __call__(self, method, *args, **kwargs):
        with Client(self.target, **self.options) as client:
            return getattr(client, method)(*args, **kwargs)

    def pieces(self, *args, **kwargs):
        with Client(self.target, **self.options) as client:
            return list(client.stream(*args, **kwargs))


class AsyncCaller(Caller):
    """Calls methods of an asynchronous client."""

    def __call__(self, method, *args, **kwargs):
        async def call():
            async with AsyncClient(self.target, **self.options) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(call())

    def pieces(self, *args, **kwargs):
        async def call():
            async with AsyncClient(self.target, **self.options) as client:
                return [piece async for piece in client.stream(*args, **kwargs)]

        return asyncio.run(call())


@pytest.fixture
def fake():
    with fake_service() as service:
        yield service


@pytest.fixture(params=[Caller, AsyncCaller], ids=["sync", "async"])
def kind(request):
    return request.param


@pytest.fixture
def ask(kind, fake):
    return kind(fake.address, timeout=10)


@pytest.fixture
def free_port():
    """A port on which nobody listened a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def environment(fake):
    return {**os.environ, "TERCET_TARGET": fake.address, "COLUMNS": "100", "NO_COLOR": "1"}


@pytest.fixture
def process(environment):
    """Runs the command as a process of its own."""

    def run(*arguments, stdin=b"", **variables):
        return subprocess.run(
            [sys.executable, "-m", "tercet.client.cli", *arguments],
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
            env={**environment, **variables},
        )

    return run


@pytest.fixture
def tercet(environment):
    """Runs the command in this process, which is faster."""

    def run(*arguments, stdin=b"", **variables):
        result = CliRunner().invoke(cli.app, [*map(str, arguments)], input=stdin, env={**environment, **variables})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout_bytes, result.stderr_bytes)

    return run
