"""The least that a gRPC call in Python costs: `python -m benchmarks.serving.echo` answers bytes with the same bytes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from benchmarks.environment import ROOT

if TYPE_CHECKING:
    from collections.abc import Generator

METHOD = "/benchmark.Echo/Echo"


@contextmanager
def echo_server() -> Generator[str]:
    """A process that echoes; its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving.echo"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        if process.stdout is None or not (port := process.stdout.readline().strip()):
            raise RuntimeError("the echo server did not come up")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


async def _serve() -> None:
    async def echo(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return request

    server = grpc.aio.server()
    service, method = METHOD.strip("/").split("/")
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve())
