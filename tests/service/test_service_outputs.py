"""What becomes of an engine's tokens on their way to a reader."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from tercet.server import wire
from tercet.server.metrics import Metrics
from tercet.server.service.errors import EngineLostError, InvalidArgumentError
from tercet.server.service.outputs import Outputs
from tercet.server.text import load_text_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Cancelled = list[tuple[int, int] | int]


@pytest.fixture
def begin(checkpoints: dict[str, Path]) -> Callable[..., tuple[Outputs, Cancelled]]:
    """Begins a generation with id 7; gives it, and a list of what is cancelled."""
    tokenizer = load_text_model(checkpoints["decoder"]).tokenizer

    def begin(n: int = 1, stop: tuple[str, ...] = ()) -> tuple[Outputs, Cancelled]:
        cancelled: Cancelled = []
        channel = SimpleNamespace(
            arrived=1.0, cancel=cancelled.extend, cancel_sample=lambda id, sample: cancelled.append((id, sample))
        )
        call = SimpleNamespace(model="m", stage="queued", started=0.0)
        message = wire.Generate(id=7, token_ids=[5], sampling=wire.Sampling(max_new_tokens=9), n=n)
        answer = Outputs(
            message,
            channel,  # type: ignore[arg-type]
            call,  # type: ignore[arg-type]
            Metrics(),
            field="input.text",
            tokenizer=tokenizer,
            stop=stop,
            echo=(),
            skip_special_tokens=True,
        )
        return answer, cancelled

    return begin


def tokens(*ids: int, sample: int = 0, finish: wire.FinishReason | None = None) -> wire.Tokens:
    return wire.Tokens(id=7, sample=sample, token_ids=list(ids), finish_reason=finish)


def taken(answer: Outputs) -> list[tuple[int, str, list[int], str | None]]:
    """What a reader gets now."""
    return [(index, piece.text, piece.token_ids, piece.finish_reason) for index, piece in asyncio.run(answer.pieces())]


def test_what_is_not_taken_is_merged(begin):
    answer, _ = begin(n=2)
    assert not answer.receive(tokens(6))
    assert taken(answer) == [(0, "w6", [6], None)]
    for id in (7, 8, 9):
        answer.receive(tokens(id))
        answer.receive(tokens(id, sample=1))
    assert not answer.receive(tokens(10, finish="eos"))
    assert taken(answer) == [(0, " w7 w8 w9 w10", [7, 8, 9, 10], "eos"), (1, "w7 w8 w9", [7, 8, 9], None)]
    assert answer.receive(tokens(finish="length", sample=1))
    assert answer.finished
    assert taken(answer) == [(1, "", [], "length")]
    assert answer.generated_tokens == 8


def test_a_stop_string_within_a_message_cuts_its_tokens(begin):
    answer, cancelled = begin(stop=("w8",))
    assert answer.receive(tokens(6, 7, 8, 9, 10))
    assert cancelled == [(7, 0)]
    assert taken(answer) == [(0, "w6 w7 ", [6, 7, 8], "stop")]


def test_tokens_that_come_after_a_stop_string_are_dropped(begin):
    answer, cancelled = begin(n=2, stop=("w8",))
    answer.receive(tokens(8))
    assert not answer.receive(tokens(9, 10, finish="length"))
    assert cancelled == [(7, 0)]
    assert taken(answer) == [(0, "", [8], "stop")]
    assert answer.generated_tokens == 1


def test_text_held_back_for_a_stop_string_comes_at_the_end(begin):
    answer, _ = begin(stop=("w8 w9 w9",))
    answer.receive(tokens(8))
    answer.receive(tokens(9))
    [(_, text, ids, _)] = taken(answer)
    assert (text, ids) == ("", [8, 9])
    answer.receive(tokens(finish="length"))
    assert taken(answer) == [(0, "w8 w9", [], "length")]


def test_a_stop_string_in_the_last_token_is_the_reason(begin):
    answer, cancelled = begin(stop=("w8",))
    assert answer.receive(tokens(8, finish="length"))
    assert cancelled == []  # the engine has ended it already
    assert taken(answer) == [(0, "", [8], "stop")]


def test_a_refusal_and_a_death_are_errors(begin):
    answer, _ = begin()
    assert answer.receive(wire.Rejected(id=7, reason="invalid", message="too odd"))
    with pytest.raises(InvalidArgumentError, match=r"input\.text: too odd"):
        asyncio.run(answer.whole())
    answer, _ = begin()
    answer.receive(tokens(6, 7))
    taken(answer)
    answer.receive(tokens(8))
    answer.lose()
    with pytest.raises(EngineLostError) as raised:
        asyncio.run(answer.pieces())
    assert raised.value.metadata == {"tokens_sent": "2"}


def test_closing_cancels(begin):
    answer, cancelled = begin()
    answer.close()
    assert cancelled == [7]
