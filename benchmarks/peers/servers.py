"""Peer servers as their own documents start and ask them; each is a row where its program is installed."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

START_SECONDS = 600
STOP_SECONDS = 20
MODEL = "model"  # the name that peers serve it under, where they ask for one


class PeerError(RuntimeError):
    """A peer that doesn't come up, or answers with an error; the message has what it said."""


@dataclass(frozen=True)
class Peer:
    """A server with an HTTP interface."""

    name: str
    program: str
    """Found on PATH where it is installed."""
    options: Callable[[Path, int], Sequence[str]]
    """The rest of the command line for a checkpoint and a port."""
    path: str
    """What a question is posted to."""
    question: Callable[[Sequence[Any], int], dict[str, Any]]
    """The JSON for texts to embed, or for one prompt's token ids and so many new tokens."""
    answer: Callable[[Any], Any]
    """Vectors, or the number of tokens generated, of the JSON that comes back."""

    @property
    def installed(self) -> bool:
        """Whether it can be started here."""
        return which(self.program) is not None


def _completions(prompt: Sequence[Any], new_tokens: int) -> dict[str, Any]:
    """OpenAI's completions, as vLLM and SGLang extend them."""
    return {
        "model": MODEL, "prompt": list(prompt), "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True,
    }  # fmt: skip


EMBEDDERS = (
    Peer(
        "TEI", "text-embeddings-router",
        lambda checkpoint, port: ["--model-id", str(checkpoint), "--port", str(port), "--pooling", "mean"],
        "/embed",
        lambda texts, _: {"inputs": list(texts), "normalize": True, "truncate": True},
        lambda answer: answer,
    ),
    Peer(
        "Infinity", "infinity_emb",
        lambda checkpoint, port: [
            "v2", "--model-id", str(checkpoint), "--served-model-name", MODEL, "--port", str(port),
        ],
        "/embeddings",
        lambda texts, _: {"model": MODEL, "input": list(texts)},
        lambda answer: [item["embedding"] for item in answer["data"]],
    ),
)  # fmt: skip
GENERATORS = (
    Peer(
        "vLLM", "vllm",
        lambda checkpoint, port: ["serve", str(checkpoint), "--served-model-name", MODEL, "--port", str(port)],
        "/v1/completions", _completions, lambda answer: answer["usage"]["completion_tokens"],
    ),
    Peer(
        "SGLang", "sglang",
        lambda checkpoint, port: [
            "serve", "--model-path", str(checkpoint), "--served-model-name", MODEL, "--port", str(port),
        ],
        "/v1/completions", _completions, lambda answer: answer["usage"]["completion_tokens"],
    ),
)  # fmt: skip


class PeerServer:
    """A peer that runs; each thread that asks has a connection of its own."""

    def __init__(self, peer: Peer, port: int) -> None:
        self._peer, self._port = peer, port
        self._own = threading.local()
        self._connections: list[HTTPConnection] = []

    def ask(self, given: Sequence[Any], new_tokens: int = 0) -> Any:
        """One call. Raises PeerError."""
        body = json.dumps(self._peer.question(given, new_tokens))
        connection: HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = HTTPConnection("127.0.0.1", self._port, timeout=600)
            self._connections.append(connection)
        connection.request("POST", self._peer.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise PeerError(f"{self._peer.name} answered {response.status}: {text[:500].decode(errors='replace')}")
        return self._peer.answer(json.loads(text))

    def healthy(self) -> bool:
        """Whether it says that it is ready."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def close(self) -> None:
        """Hangs up; nobody may be asking."""
        for connection in self._connections:
            connection.close()


@contextmanager
def start(peer: Peer, checkpoint: Path) -> Generator[PeerServer]:
    """Starts a peer on a free port, waits until it is healthy and stops it in the end. Raises PeerError."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([peer.program, *peer.options(checkpoint, port)], stdout=log, stderr=log)
        server = PeerServer(peer, port)
        try:
            end = time.monotonic() + START_SECONDS
            while not server.healthy():
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    said = log.read()[-1000:].decode(errors="replace")
                    raise PeerError(f"{peer.name} did not come up: {said}")
                time.sleep(0.2)
            yield server
        finally:
            server.close()
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
