"""What a step costs the host where the device takes no time: scheduling, what is told to the device, answers."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, TypeVar

import torch

from benchmarks.models.recipes import GPT2, saved
from benchmarks.null_model import TOKEN, NullModel, Pace, PacedDevice
from benchmarks.rows import Goal, Result
from tercet.server.engine.engine import Engine
from tercet.server.engine.graphs import Graphs
from tercet.server.engine.lanes import Lanes
from tercet.server.engine.memory import lane_pages
from tercet.server.engine.runner import Runner
from tercet.server.engine.validation import limits_of
from tercet.server.models import load_model
from tercet.server.wire import EngineSettings, Generate, Rejected, Sampling, Tokens, token_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.rows import Fact, Settings

    Output = TypeVar("Output")

ROWS = (1, 64, 256)
BUDGET = {1: 100, 64: 350, 256: 1200}
"""Microseconds of CPU for a step of so many rows that all decode, none of them new."""
PROMPT_TOKENS, LONGEST, PAGE_SIZE = 32, 1024, 16
NEW_TOKENS = 64  # of each request where new ones arrive as others end
STEPS = 100  # of one timing
WARM = 20


class NullDevice:
    """Graphs that replay nothing: whoever reads their outputs finds what was there when they were captured."""

    def capture(self, run: Callable[[], Output]) -> tuple[Callable[[], object], Output]:
        """Runs it once."""
        output = run()
        return (lambda: None), output


class Rows:
    """An engine on a null device that decodes so many rows, always as many."""

    def __init__(self, rows: int, *, new_tokens: int | None) -> None:
        """`new_tokens` of each request, the first ones spread so that they end one after another; None if none ends."""
        settings = EngineSettings(
            name="host", source="", incarnation=0, device="cpu", dtype="float32", kernels="auto", layout="auto",
            memory=1 << 40, threads=1, max_length=None, max_rows=rows, max_batch_tokens=8192,
            page_size=PAGE_SIZE, prefix_cache=False,
        )  # fmt: skip
        small = replace(GPT2.rehearsed(), options={**GPT2.options, **GPT2.small, "n_positions": LONGEST})
        with saved(small.built("cpu", torch.float32)) as folder:
            loaded = load_model(folder, device=torch.device("cpu"), dtype="float32")
        model = NullModel(loaded, PacedDevice(Pace()), settings.max_batch_tokens)
        pages = rows * LONGEST // settings.page_size
        self._engine = Engine(
            Runner(
                model,
                model.new_cache(pages, settings.page_size),
                Lanes(rows, *lane_pages(model, settings), model.device),
                max_rows=rows,
                padded=False,
                graphs=Graphs(NullDevice()),
            ),
            limits_of(model, settings, pages),
            settings,
            padded=False,
            ahead=True,
        )
        self._new_tokens = new_tokens
        self._ids = count()
        self.tokens = self.replayed = 0
        for row in range(rows):
            self._ask(1 + new_tokens * (row + 1) // rows if new_tokens else LONGEST)

    def run(self, steps: int) -> None:
        """So many steps; a request that ends is followed by another."""
        for _ in range(steps):
            result = self._engine.step()
            self.replayed += sum(stats.replayed_steps for stats in result.stats)
            for output in result.answers:
                if isinstance(output, Rejected):
                    raise RuntimeError(output.message)
                if isinstance(output, Tokens):
                    self.tokens += len(output.token_ids)
                    if output.finish_reason:
                        self._ask(self._new_tokens or LONGEST)

    def _ask(self, new_tokens: int) -> None:
        key = next(self._ids)
        ids = [TOKEN] * (PROMPT_TOKENS + key % PAGE_SIZE)  # as many rows want a page in every step
        self._engine.submit(Generate(id=key, token_ids=token_ids(ids), sampling=Sampling(max_new_tokens=new_tokens)))


def step(settings: Settings) -> Result:
    """Microseconds of CPU that a step takes, at several numbers of rows: steady, and where new requests arrive."""
    torch.set_num_threads(1)
    steps = 5 if settings.rehearsal else STEPS
    facts: dict[str, Fact] = {}
    goals: list[Goal] = []
    seconds: dict[str, list[float]] = {}
    for rows in ROWS[:1] if settings.rehearsal else ROWS:
        for name, new_tokens in (("steady", None), ("with arrivals", NEW_TOKENS)):
            case = f"{rows} rows, {name}"
            engine = Rows(rows, new_tokens=new_tokens)
            engine.run(WARM)
            gc.collect()
            gc.freeze()  # as an engine's process does
            engine.tokens = engine.replayed = 0
            seconds[case] = [_timed(engine, steps) for _ in range(settings.rounds)]
            gc.unfreeze()
            done = steps * settings.rounds
            facts[case] = f"{engine.tokens / done:.1f} tokens a step, {engine.replayed / done:.0%} of them replayed"
        micros = statistics.median(seconds[f"{rows} rows, steady"]) * 1e6
        goals.append(Goal(f"µs of CPU a steady step of {rows} rows", micros, BUDGET[rows], at_most=True))
    rates = {case: 1 / statistics.median(times) for case, times in seconds.items()}
    title = "the engine's host on a device that takes no time, greedy: steps a second of CPU"
    return Result(title, "steps/s", seconds, rates, facts=facts, goals=goals)


def _timed(engine: Rows, steps: int) -> float:
    """Seconds of this thread's CPU a step."""
    start = time.thread_time()
    engine.run(steps)
    return (time.thread_time() - start) / steps
