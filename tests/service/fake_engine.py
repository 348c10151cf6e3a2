"""An engine without a model, run as the real one is: `python fake_engine.py FOLDER SETTINGS_JSON`.

A checkpoint's config.json says what it is ("model_type": bert, gpt2 or t5), what it can do and how it misbehaves
("fake": an object): `tasks` and `labels` are of its head, `fail` is a line for Failed, `crash` ends the process before
Ready, `gate` is a file to wait for before that, `step` is the seconds of a step.

A vector is [tokens, sum of the ids, number of the pooling, normalize]; each token is its predecessor plus 1, plus the
sample's number at first, and HELD_ID is answered with nothing until it is cancelled. What a head makes of a token is
its id times 1, 2, …, a label or an end each, by tenths; what it makes of a text the mean over its tokens. A candidate's
log probability is minus its id, by tenths; so is a token's that is scored. Of a prompt that was there before with the
same salt half is found in the cache.
"""

from __future__ import annotations

import contextlib
import json
import struct
import sys
import time
from pathlib import Path
from typing import cast

import msgspec

from tercet.server import wire
from tercet.server.engine.connection import Connections, Gone

Question = wire.Embed | wire.Predict | wire.FillMask | wire.Score
POOLINGS = ("mean", "cls", "last", "max", "none")
FAMILIES: dict[str, wire.Family] = {"bert": "encoder", "gpt2": "decoder", "t5": "seq2seq"}
VOCAB_SIZE = 60
MAX_LENGTH = 32
POISON_ID = 50  # rejected with "internal"
INVALID_ID = 51  # rejected with "invalid"
HELD_ID = 52
PAGES = 64


class FakeEngine:
    """One request a page; all of them move on by one token a step."""

    def __init__(self, settings: wire.EngineSettings, behaviour: dict[str, object], connections: Connections) -> None:
        self.incarnation = settings.incarnation
        self.step_seconds = float(str(behaviour.get("step", 0)))
        self.tasks = [str(task) for task in cast("list[object]", behaviour.get("tasks", []))]
        self.labels = int(str(behaviour.get("labels", 0)))
        self.connections = connections
        self.questions: list[Question] = []
        self.samples: dict[tuple[int, int], tuple[wire.Generate, list[int]]] = {}
        self.launches = 0
        self.known: set[tuple[str, ...]] = set()
        self.cache = wire.CacheCounts()

    def take(self, message: wire.ToEngine | Gone) -> None:
        """A message of a front end."""
        match message:
            case wire.Generate():
                self.samples |= {(message.id, sample): (message, []) for sample in range(message.n)}
            case wire.Cancel():
                self.questions = [question for question in self.questions if question.id != message.id]
                for key in [key for key in self.samples if key[0] == message.id and message.sample in (None, key[1])]:
                    del self.samples[key]
                self.report([])
            case Gone():
                held = {m.id for m in [*self.questions, *(m for m, _ in self.samples.values())]}
                for id in [id for id in held if id in message.ids]:
                    self.take(wire.Cancel(id=id))
            case wire.Stop():
                sys.exit(0)
            case _:
                self.questions.append(message)

    @property
    def busy(self) -> bool:
        """Whether a step would bring anything."""
        return any(HELD_ID not in m.token_ids for m in [*self.questions, *(m for m, _ in self.samples.values())])

    def step(self) -> None:
        """Answers every question, and gives every sample its next token."""
        time.sleep(self.step_seconds)
        answered = [question for question in self.questions if HELD_ID not in question.token_ids]
        self.questions = [question for question in self.questions if HELD_ID in question.token_ids]
        outputs = [self.answer(question) for question in answered]
        read = sum(len(question.token_ids) for question in answered)
        generated = 0
        for (id, sample), (message, made) in list(self.samples.items()):
            if HELD_ID in message.token_ids:
                continue
            if reason := self.refusal(message.token_ids, message.deadline):
                outputs.append(wire.Rejected(id=id, reason=reason, message="refused by the fake"))
                self.take(wire.Cancel(id=id))
                break
            if not made and not sample:
                read += len(message.token_ids)
                outputs += self.find(message)
            generated += 1
            outputs += self.generate(message, sample, made)
        self.report(outputs, rows=len(answered) + generated, read=read, generated=generated)

    def find(self, message: wire.Generate) -> list[wire.Output]:
        """What of a prompt was there before."""
        prompt = (message.cache_salt, *map(str, message.token_ids))
        found = (len(message.token_ids) + 1) // 2 if prompt in self.known else 0
        self.known.add(prompt)
        kind = "source" if message.decoder_ids else "prefix"
        counts = {f"{kind}_queries": len(message.token_ids), f"{kind}_hits": found}
        counts = {name: getattr(self.cache, name) + more for name, more in counts.items()}
        self.cache = msgspec.structs.replace(self.cache, **counts, evictions=len(self.known))
        return [wire.Cached(id=message.id, tokens=found)] if found else []

    def generate(self, message: wire.Generate, sample: int, made: list[int]) -> list[wire.Tokens]:
        """The next token of a sample; of a beam nothing but all of them at its end."""
        sampling = message.sampling
        token = ((made or [message.token_ids[-1] + sample])[-1] + 1) % VOCAB_SIZE
        if not made and sampling.forced_bos_id is not None:
            token = sampling.forced_bos_id
        made.append(token)
        ends = {"eos": token in message.eos_ids, "stop": token in message.stop_ids}
        late = len(made) >= sampling.min_new_tokens
        finish = next((reason for reason, met in ends.items() if met and late), None)
        if finish is None and len(made) >= sampling.max_new_tokens:
            finish = "length"
        if finish is not None:
            del self.samples[message.id, sample]
        beam = sampling.num_beams > 1
        if beam and finish is None:
            return []
        ids = made if beam else [token]
        logprobs = [self.logprob(id, sampling.top_logprobs) for id in ids] if sampling.logprobs else None
        score = -sample / 2 if beam else None
        return [
            wire.Tokens(
                id=message.id, sample=sample, token_ids=ids, finish_reason=finish, logprobs=logprobs, score=score
            )
        ]

    def answer(self, question: Question) -> wire.Output:
        """The answer to a question."""
        if reason := self.refusal(question.token_ids, question.deadline):
            return wire.Rejected(id=question.id, reason=reason, message="refused by the fake")
        match question:
            case wire.Embed():
                return wire.Embedding(id=question.id, data=self.vectors(question))
            case wire.Predict():
                return wire.Prediction(id=question.id, data=self.prediction(question))
            case wire.FillMask():
                candidates = sorted(question.targets or range(VOCAB_SIZE))[: question.top_k]
                places = len(question.positions)
                logprobs = [-id / 10 for id in candidates]
                return wire.Candidates(id=question.id, token_ids=[candidates] * places, logprobs=[logprobs] * places)
            case wire.Score():
                ids = (question.decoder_ids or question.token_ids)[question.first :]
                return wire.Scored(id=question.id, logprobs=[self.logprob(id, question.top_logprobs) for id in ids])

    def vectors(self, question: wire.Embed) -> bytes:
        """One, or, without pooling, one for each token."""
        ids = question.token_ids
        pooling = POOLINGS.index(question.pooling)
        rows = [[id] for id in ids] if question.pooling == "none" else [ids]
        values = [(len(ids), sum(row), pooling, question.normalize)[: question.dimensions] for row in rows]
        return b"".join(struct.pack(f"<{len(row)}f", *row) for row in values)

    def prediction(self, question: wire.Predict) -> bytes:
        """What the head makes of it. A seq2seq decoder's tokens count too, and the last that is read counts twice."""
        ids = [*question.token_ids, *question.decoder_ids]
        if question.last is not None:
            ids.append(question.token_ids[question.last])
        labels = 2 if "answer" in self.tasks else self.labels
        rows = [[sum(ids) / len(ids)]] if "classify" in self.tasks else [[id] for id in question.token_ids]
        values = [id * label / 10 for [id] in rows for label in range(1, labels + 1)]
        return struct.pack(f"<{len(values)}f", *values)

    def logprob(self, id: int, top: int) -> wire.TokenLogprob:
        """Of one token."""
        return wire.TokenLogprob(logprob=-id / 10, top_ids=list(range(top)), top_logprobs=[-i / 10 for i in range(top)])

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
        self.connections.report(
            wire.StepResult(
                incarnation=self.incarnation,
                outputs=[],
                stats=[stats] if rows else [],
                running=len(self.samples) + len(self.questions),
                waiting=0,
                pages_used=len(self.samples),
                pages_cached=len(self.known),
                cache=self.cache,
                preemptions=0,
                kernel_launches={"attention/cpu": self.launches},
            )
        )
        rows = [output for output in outputs if is_plain(output)]
        columns = wire.NextTokens(
            ids=[row.id for row in rows],
            samples=[row.sample for row in rows],
            token_ids=[token for row in rows for token in row.token_ids],
        )
        self.connections.answer([output for output in outputs if not is_plain(output)], columns)


def is_plain(output: wire.Output) -> bool:
    """Whether it is a token, and nothing else is to say of it."""
    return (
        isinstance(output, wire.Tokens)
        and len(output.token_ids) == 1
        and (output.finish_reason, output.logprobs, output.score) == (None, None, None)
    )


def main(folder: str, settings_json: str) -> None:
    """Runs until Stop or the supervisor's end."""
    settings = msgspec.json.decode(settings_json, type=wire.EngineSettings)
    config = json.loads((Path(settings.source) / "config.json").read_text())
    behaviour = config.get("fake", {})
    family = FAMILIES[config["model_type"]]
    connections = Connections(Path(folder), settings.incarnation)
    connections.end_process_with_supervisor()
    engine = FakeEngine(settings, behaviour, connections)
    connections.report(wire.Loading(incarnation=settings.incarnation, stage="weights", done=1, total=2))
    if line := behaviour.get("fail"):
        connections.report(wire.Failed(incarnation=settings.incarnation, message=line))
        sys.exit(2)
    if behaviour.get("crash"):
        sys.exit(1)
    while "gate" in behaviour and not Path(str(behaviour["gate"])).exists():
        time.sleep(0.01)
    info = wire.ModelInfo(
        architecture=config["model_type"],
        family=family,
        tasks=engine.tasks or (["embed"] if family == "encoder" else ["generate"]),
        max_length=settings.max_length or MAX_LENGTH,
        longest_read=settings.max_length or MAX_LENGTH,
        vocab_size=VOCAB_SIZE,
        target_vocab_size=VOCAB_SIZE,
        embedding_size=4,
        labels=engine.labels,
        dtype="float32",
        device=settings.device,
        parameters=123,
        pages=0 if family == "encoder" else PAGES,
        page_size=settings.page_size,
        memory=settings.memory,
    )
    connections.report(wire.Ready(incarnation=settings.incarnation, model=info))
    while True:
        for message in connections.receive(wait=not engine.busy):
            engine.take(message)
        if engine.busy:
            engine.step()


if __name__ == "__main__":
    with contextlib.suppress(EOFError):
        main(*sys.argv[1:])
