"""What the server writes to stderr: structured events, bars for people, never prompts."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from support.status import refused
from tercet.v1.embedding_pb2 import EmbedRequest
from tercet.v1.generation_pb2 import Chat, ChatMessage, GenerateRequest, SamplingParameters
from tercet.v1.types_pb2 import Strings, TextInput

if TYPE_CHECKING:
    from pathlib import Path

CANARY = "xyzzy-canary"


def test_prompts_are_never_logged_and_every_line_is_an_event(checkpoints: dict[str, Path], start, connect):
    with start(checkpoints, "--log-level", "debug") as server:
        with connect(server) as stubs:
            text = TextInput(text=CANARY)
            chat = Chat(messages=[ChatMessage(role="user", content=CANARY)])
            few = SamplingParameters(max_new_tokens=3, stop=Strings(values=[CANARY]))
            stubs.embedding.Embed(EmbedRequest(inputs=[text]))
            stubs.generation.Generate(GenerateRequest(chat=chat, sampling=few))
            list(stubs.generation.GenerateStream(GenerateRequest(model="seq2seq", input=text, sampling=few)))
            refused(
                lambda: stubs.generation.Generate(
                    GenerateRequest(model="decoder", input=TextInput(text=f"{CANARY} " * 99))
                )
            )
            metadata = (("x-request-id", "mine"),)
            _, call = stubs.embedding.Embed.with_call(EmbedRequest(inputs=[text]), metadata=metadata)
        assert server.stop() == 0
        log = server.log.read_text()
        assert CANARY not in log
        events = [json.loads(line) for line in log.splitlines()]
    [last] = [event for event in events if event.get("client_id") == "mine"]
    assert last["id"] == dict(call.trailing_metadata())["x-request-id"]
    assert (last["method"], last["model"], last["code"]) == ("Embed", "encoder", "OK")
    names = [event["event"] for event in events if event["level"] == "info"]
    assert names.count("engine started") == names.count("model ready") == 3
    assert names[-3:] == ["serving", "draining", "stopping"]
    assert all(event["time"] and event["level"] for event in events)


def test_a_terminal_gets_bars_and_short_lines(checkpoints: dict[str, Path], fake_launcher):
    leader, follower = pty.openpty()
    command = [*fake_launcher, "serve", f"encoder={checkpoints['encoder']}", "--port", "0", "--metrics-port", "0"]
    shown = b""
    with subprocess.Popen(command, stderr=follower, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(follower)
        end = time.monotonic() + 30
        while b"serving" not in shown and time.monotonic() < end:
            if select.select([leader], [], [], 0.1)[0]:
                shown += os.read(leader, 1 << 16)
        process.send_signal(signal.SIGTERM)
        while select.select([leader], [], [], 5)[0]:
            try:
                shown += os.read(leader, 1 << 16)
            except OSError:  # the other end is closed
                break
        assert process.wait(20) == 0
    os.close(leader)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"encoder .*━", text)
    assert re.search(r"\d\d:\d\d:\d\d INFO    \[supervisor\] serving address=127\.0\.0\.1:\d+ ", text)
    assert "{" not in text
