"""The open loop: when requests arrive, what is made of their times, and that they are all sent and answered."""

import statistics

import pytest
from benchmarks.null_model import Pace
from benchmarks.serving.latency import Goal, Timeline, percentile, summary
from benchmarks.serving.openloop import Load, Request, run
from benchmarks.serving.server import serve

from benchmarks import checkpoints

ANY = Goal()
STREAMED = Timeline(1.0, 10, [(1.5, 1), (1.7, 2), (2.0, 1)])
EMBEDDED = Timeline(2.0, 5, [(2.25, 0)])
LOST = Timeline(3.0, 5, error="Unavailable")


def load(**changes: object) -> Load:
    requests = [Request([1000] * 4)] * 4000
    return Load(**{"address": "", "model": "m", "question": "embed", "requests": requests, "rate": 50.0, **changes})


def test_a_timeline_knows_the_names_of_its_spans() -> None:
    assert STREAMED.first_token == pytest.approx(0.5)
    assert STREAMED.duration == pytest.approx(1.0)
    assert STREAMED.tokens == 4
    assert STREAMED.per_token == pytest.approx(0.5 / 3)
    assert STREAMED.gaps == pytest.approx([0.2, 0.3])
    assert EMBEDDED.per_token is None


def test_the_summary_counts_from_the_first_arrival_to_the_last_message() -> None:
    figures = summary([STREAMED, EMBEDDED, LOST], Goal(e2el=500))
    assert (figures["completed"], figures["failed"]) == (2, 1)
    assert figures["duration"] == pytest.approx(1.25)
    assert figures["request_throughput"] == pytest.approx(2 / 1.25)
    assert figures["request_goodput"] == pytest.approx(1 / 1.25)  # the embedding alone took no more than 500 ms
    assert figures["output_throughput"] == pytest.approx(4 / 1.25)
    assert figures["total_token_throughput"] == pytest.approx(19 / 1.25)
    assert figures["max_output_tokens_per_s"] == 3  # in the second from 1 to 2
    assert figures["max_concurrent_requests"] == 1  # one ends as the other arrives
    assert figures["mean_e2el_ms"] == pytest.approx(625)
    assert figures["p99_tpot_ms"] == pytest.approx(500 / 3)


def test_a_run_of_failures_has_no_figures() -> None:
    assert summary([LOST], ANY) == {"completed": 0, "failed": 1}


@pytest.mark.parametrize(
    ("goal", "held"),
    [(ANY, True), (Goal(ttft=500), True), (Goal(ttft=499), False), (Goal(ttft=600, tpot=600, e2el=600), False),
     (Goal(tpot=167), True), (Goal(tpot=166), False)],
)  # fmt: skip
def test_goals(goal: Goal, held: bool) -> None:
    assert goal.held(STREAMED) is held
    assert not goal.held(LOST)


def test_percentiles_lie_between_ranks() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == pytest.approx(2.5)
    assert percentile([7.0], 99) == 7


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_rate_and_the_burstiness_asked_for(burstiness: float) -> None:
    times = load(burstiness=burstiness).arrivals()
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert statistics.fmean(gaps) == pytest.approx(1 / 50, rel=0.1)
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) == pytest.approx(burstiness**-0.5, rel=0.15)
    assert times == load(burstiness=burstiness).arrivals()
    assert times != load(burstiness=burstiness, seed=1).arrivals()


def test_every_request_is_sent_and_answered_by_a_model_that_computes_nothing() -> None:
    requests = [Request([1000 + i] * (4 + i)) for i in range(6)]
    with serve({"minilm": checkpoints.minilm()}, "--threads", "1", pace=Pace(step=0.001)) as server:
        timelines, lost = run(
            load(address=server.address, model="minilm", requests=requests, rate=100.0, processes=2),
            load(address=server.address, model="nobody", requests=requests[:1]),
        )
    assert sorted(timeline.prompt_tokens for timeline in timelines) == [4, 5, 6, 7, 8, 9]
    assert all(timeline.error is None and 0 < timeline.duration < 60 for timeline in timelines)
    assert [timeline.error for timeline in lost] == ["NotFound"]
