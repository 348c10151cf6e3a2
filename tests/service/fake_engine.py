"""An engine without a model, run as the real one is: `python fake_engine.py SOCKET SETTINGS_JSON`.

A checkpoint's config.json says what it is ("model_type": bert, gpt2 or t5) and how it misbehaves ("fake": an object):
`fail` is a line for Failed, `crash` ends the process before Ready, `gate` is a file to wait for before that, `step` is
the seconds of a step. A vector is [tokens, sum of the ids, number of the pooling, normalize]; each token is its
predecessor plus 1, plus the sample's number at first, and HELD_ID is answered with nothing until it is cancelled.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from pathlib import Path

import msgspec

from tercet.server import frames, wire

POOLINGS = ("mean", "cls", "last", "max")
FAMILIES: dict[str, wire.Family] = {"bert": "encoder", "gpt2": "decoder", "t5": "seq2seq"}
VOCAB_SIZE = 60
MAX_LENGTH = 32
POISON_ID = 50  # rejected with "internal"
INVALID_ID = 51  # rejected with "invalid"
HELD_ID = 52
PAGES = 64


class FakeEngine:
    """One request a page; all of them move on by one token a step."""

    def __init__(self, settings: wire.EngineSettings, behaviour: dict[str, object], connection: socket.socket) -> None:
        self.incarnation = settings.incarnation
        self.step_seconds = float(str(behaviour.get("step", 0)))
        self.connection = connection
        self.embeds: list[wire.Embed] = []
        self.samples: dict[tuple[int, int], tuple[wire.Generate, list[int]]] = {}
        self.launches = 0

    def take(self, message: wire.ToEngine) -> None:
        """A message of the front end."""
        match message:
            case wire.Embed():
                self.embeds.append(message)
            case wire.Generate():
                self.samples |= {(message.id, sample): (message, []) for sample in range(message.n)}
            case wire.Cancel():
                self.embeds = [embed for embed in self.embeds if embed.id != message.id]
                for key in [key for key in self.samples if key[0] == message.id and message.sample in (None, key[1])]:
                    del self.samples[key]
                self.report([])
            case wire.Stop():
                sys.exit(0)

    @property
    def busy(self) -> bool:
        """Whether a step would bring anything."""
        return any(HELD_ID not in m.token_ids for m in [*self.embeds, *(m for m, _ in self.samples.values())])

    def step(self) -> None:
        """Answers every embedding, and gives every sample its next token."""
        time.sleep(self.step_seconds)
        answered = [embed for embed in self.embeds if HELD_ID not in embed.token_ids]
        self.embeds = [embed for embed in self.embeds if HELD_ID in embed.token_ids]
        outputs: list[wire.Embedding | wire.Tokens | wire.Rejected] = [self.embed(embed) for embed in answered]
        read = sum(len(embed.token_ids) for embed in answered)
        generated = 0
        for (id, sample), (message, made) in list(self.samples.items()):
            if HELD_ID in message.token_ids:
                continue
            if reason := self.refusal(message.token_ids, message.deadline):
                outputs.append(wire.Rejected(id=id, reason=reason, message="refused by the fake"))
                self.take(wire.Cancel(id=id))
                break
            read += 0 if made or sample else len(message.token_ids)
            token = ((made or [message.token_ids[-1] + sample])[-1] + 1) % VOCAB_SIZE
            made.append(token)
            generated += 1
            ends = {"eos": token in message.eos_ids, "stop": token in message.stop_ids}
            late = len(made) >= message.sampling.min_new_tokens
            finish = next((reason for reason, met in ends.items() if met and late), None)
            if finish is None and len(made) >= message.sampling.max_new_tokens:
                finish = "length"
            outputs.append(wire.Tokens(id=id, sample=sample, token_ids=[token], finish_reason=finish))
            if finish is not None:
                del self.samples[id, sample]
        self.report(outputs, rows=len(answered) + generated, read=read, generated=generated)

    def embed(self, message: wire.Embed) -> wire.Embedding | wire.Rejected:
        """The vector of a sequence."""
        if reason := self.refusal(message.token_ids, message.deadline):
            return wire.Rejected(id=message.id, reason=reason, message="refused by the fake")
        ids = message.token_ids
        values = (len(ids), sum(ids), POOLINGS.index(message.pooling), message.normalize)
        return wire.Embedding(id=message.id, data=struct.pack("<4f", *values))

    def refusal(self, ids: list[int], deadline: float | None) -> str | None:
        """Why a request is given up."""
        if deadline is not None and time.monotonic() > deadline:
            return "deadline"
        return {POISON_ID: "internal", INVALID_ID: "invalid"}.get(ids[0]) if ids else None

    def report(self, outputs: list, *, rows: int = 0, read: int = 0, generated: int = 0) -> None:
        """The message of a step; without rows only of what was cancelled."""
        self.launches += bool(rows)
        stats = wire.StepStats(
            phase="decode" if generated else "encode",
            rows=rows,
            real_tokens=read + generated,
            padding_tokens=rows,
            seconds=0.001,
            host_to_device_copies=1,
            prompt_tokens=read,
            generated_tokens=generated,
            recomputed_tokens=0,
        )
        self.send(
            wire.StepResult(
                incarnation=self.incarnation,
                outputs=outputs,
                stats=[stats] if rows else [],
                running=len(self.samples) + len(self.embeds),
                waiting=0,
                pages_used=len(self.samples),
                preemptions=0,
                kernel_launches={"attention/cpu": self.launches},
            )
        )

    def send(self, message: wire.FromEngine) -> None:
        """One frame to the front end."""
        self.connection.sendall(frames.encode(message))


def main(path: str, settings_json: str) -> None:
    """Runs until Stop or the end of the connection."""
    settings = msgspec.json.decode(settings_json, type=wire.EngineSettings)
    config = json.loads((Path(settings.source) / "config.json").read_text())
    behaviour = config.get("fake", {})
    family = FAMILIES[config["model_type"]]
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    engine = FakeEngine(settings, behaviour, connection)
    engine.send(wire.Loading(incarnation=settings.incarnation, stage="weights", done=1, total=2))
    if line := behaviour.get("fail"):
        engine.send(wire.Failed(incarnation=settings.incarnation, message=line))
        sys.exit(2)
    if behaviour.get("crash"):
        sys.exit(1)
    while "gate" in behaviour and not Path(str(behaviour["gate"])).exists():
        time.sleep(0.01)
    info = wire.ModelInfo(
        architecture=config["model_type"],
        family=family,
        tasks=["embed"] if family == "encoder" else ["generate"],
        max_length=settings.max_length or MAX_LENGTH,
        vocab_size=VOCAB_SIZE,
        embedding_size=4 if family == "encoder" else None,
        dtype="float32",
        device=settings.device,
        parameters=123,
        pages=0 if family == "encoder" else PAGES,
        page_size=settings.page_size,
        memory=settings.memory,
    )
    engine.send(wire.Ready(incarnation=settings.incarnation, model=info))
    reader = frames.FrameReader()
    while True:
        while select.select([connection], [], [], 0 if engine.busy else None)[0]:
            try:
                data = connection.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                return
            for body in reader.feed(data):
                engine.take(frames.to_engine_decoder.decode(body))
        engine.step()


if __name__ == "__main__":
    main(*sys.argv[1:])
