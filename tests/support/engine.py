"""Engines in this process: settings, and what came of the messages they were given."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch

from support.null_model import POISON, VOCAB_SIZE, NullModel, continuation
from tercet.server.engine.engine import Engine
from tercet.server.engine.graphs import Graphs
from tercet.server.engine.lanes import Lanes, aligned
from tercet.server.engine.memory import encoder_buckets_of, generates, lane_pages
from tercet.server.engine.runner import Runner
from tercet.server.engine.sampler import pack_sampling, unpack_sampling
from tercet.server.engine.transfer import PackedBuffer
from tercet.server.engine.validation import limits_of
from tercet.server.wire import (
    Cached,
    Candidates,
    Embedding,
    EngineSettings,
    Generate,
    Prediction,
    Rejected,
    Sampling,
    Scored,
    StepResult,
    Tokens,
    token_ids,
)

DECODER_START = [5]
"""Of null models that are seq2seq."""


def settings(**changes):
    """Settings of a small engine on the CPU."""
    base = {
        "name": "tiny", "source": "", "incarnation": 7, "device": "cpu", "dtype": "float32", "kernels": "cpu",
        "layout": "packed", "memory": 1 << 30, "threads": 1, "max_length": None, "max_rows": 8, "max_batch_tokens": 64,
        "page_size": 4,
    }  # fmt: skip
    return EngineSettings(**base | changes)


def engine_of(model, *, pages=64, ahead=False, backend=None, **changes):
    """An engine around a model, with a cache of `pages`; `backend` captures what can be replayed."""
    chosen = settings(**changes)
    if not generates(model):
        pages = 0
    cache = model.new_cache(pages, chosen.page_size) if pages else None
    padded = chosen.layout == "padded"
    lanes = Lanes(chosen.max_rows, *lane_pages(model, chosen), model.device)
    return Engine(
        Runner(
            model,
            cache,
            lanes,
            max_rows=chosen.max_rows,
            padded=padded,
            graphs=backend and Graphs(backend),
            encoder_buckets=encoder_buckets_of(model, chosen) if backend else (),
        ),
        limits_of(model, chosen, pages),
        chosen,
        padded=padded,
        ahead=ahead,
    )


def null_engine(family="decoder", *, max_length=64, heavy=None, head=None, **changes):
    """An engine around a null model; both are returned."""
    model = NullModel(family, max_length=max_length, heavy=heavy, head=head)
    return engine_of(model, **changes), model


def generate(key, ids, new_tokens, *, n=1, decoder_ids=(), eos_ids=(), stop_ids=(), deadline=None, salt="", **sampling):
    """A `Generate`, greedy unless told otherwise."""
    return Generate(
        id=key, token_ids=token_ids(ids), decoder_ids=token_ids(decoder_ids), n=n,
        eos_ids=list(eos_ids), stop_ids=list(stop_ids), deadline=deadline, cache_salt=salt,
        sampling=Sampling(max_new_tokens=new_tokens, **sampling),
    )  # fmt: skip


def prompts(count, longest, seed=0):
    """Ragged prompts without the poison."""
    rng = random.Random(seed)
    ids = [token for token in range(VOCAB_SIZE) if token != POISON]
    return [rng.choices(ids, k=rng.randint(1, longest)) for _ in range(count)]


def request(family, key, ids, new_tokens, **options):
    """A `Generate` for a null model of either family."""
    if family == "seq2seq":
        return generate(key, ids, new_tokens, decoder_ids=DECODER_START, **options)
    return generate(key, ids, new_tokens, **options)


def expected(family, ids, new_tokens, **options):
    """The greedy tokens that answer such a request."""
    if family == "seq2seq":
        return continuation(DECODER_START, new_tokens, source=ids, **options)
    return continuation(ids, new_tokens, **options)


@dataclass
class Answers:
    """What an engine said, put together from its steps."""

    tokens: dict = field(default_factory=dict)
    """(id, sample) -> token ids."""
    logprobs: dict = field(default_factory=dict)
    """(id, sample) -> log probabilities of the tokens, where asked for."""
    reasons: dict = field(default_factory=dict)
    """(id, sample) -> finish reason."""
    vectors: dict = field(default_factory=dict)
    """id -> bytes of float32, of embeddings and of a head's outputs."""
    likely: dict = field(default_factory=dict)
    """id -> `Candidates` or `Scored`."""
    cached: dict = field(default_factory=dict)
    """id -> tokens that were found, where there were any."""
    rejected: dict = field(default_factory=dict)
    """id -> reason."""
    steps: list[StepResult] = field(default_factory=list)

    def add(self, step):
        """Takes in a step's result."""
        self.steps.append(step)
        self.take(step.answers)

    def take(self, outputs):
        """Takes in the answers of a step."""
        begun = {key for key, _ in self.tokens}
        for output in outputs:
            match output:
                case Tokens(id=key, sample=sample):
                    if (key, sample) in self.reasons:
                        raise AssertionError("tokens after the finish reason")
                    self.tokens.setdefault((key, sample), []).extend(output.token_ids)
                    if output.logprobs is not None:
                        self.logprobs.setdefault((key, sample), []).extend(output.logprobs)
                    if output.finish_reason:
                        self.reasons[key, sample] = output.finish_reason
                case Embedding(id=key) | Prediction(id=key):
                    self.vectors[key] = output.data
                case Candidates(id=key) | Scored(id=key):
                    self.likely[key] = output
                case Cached(id=key, tokens=tokens):
                    if key in self.cached or key in begun:
                        raise AssertionError("told of the cache late or twice")
                    self.cached[key] = tokens
                case Rejected(id=key):
                    self.rejected[key] = output.reason

    @property
    def stats(self):
        """Of every forward pass."""
        return [stats for step in self.steps for stats in step.stats]

    def total(self, name):
        """The sum of one number of the statistics."""
        return sum(getattr(stats, name) for stats in self.stats)


def run(engine, *messages, limit=2000):
    """Submits messages and steps until all is said."""
    for message in messages:
        engine.submit(message)
    answers = Answers()
    while engine.busy:
        answers.add(engine.step())
        if len(answers.steps) > limit:
            raise AssertionError(f"not done after {limit} steps")
    return answers


def sampling_of(rows):
    """How sequences draw, each in a lane of its own, when they are the rows of a batch that choose a token."""
    cpu = torch.device("cpu")
    lanes, buffer = Lanes(len(rows), 1, 1, cpu), PackedBuffer()
    for lane, row in enumerate(rows):
        row.lanes = [lane]
    lanes.update(rows)
    lanes.put(buffer)
    pack_sampling(buffer.put, rows)
    views = buffer.upload(cpu)
    lanes.take(views)
    every = torch.arange(aligned(len(rows)), dtype=torch.int32).clamp(max=len(rows) - 1)
    return unpack_sampling(views, rows, lanes.draws_of(every, len(rows)))
