"""The open loop: when requests arrive, what is made of their times, that all are sent and answered, or cut short."""

import statistics
from collections.abc import Iterator

import pytest
from benchmarks.load import closedloop
from benchmarks.load.latency import UNANSWERED, Goal, Timeline, Watch, percentile, summary
from benchmarks.load.openloop import Limit, Load, Request, run
from benchmarks.null_model import Pace
from benchmarks.serving.server import Server, serve

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


def test_a_request_that_runs_has_missed_a_goal_once_it_would_if_all_came_now() -> None:
    running = Timeline(10.0, 4, error=UNANSWERED, new_tokens=5)
    first, token, whole = Goal(ttft=500), Goal(tpot=100), Goal(e2el=1000)
    assert [first.held(running.if_answered(now)) for now in (10.4, 10.6)] == [True, False]
    running.arrivals.append((10.5, 1))
    assert first.held(running.if_answered(20))
    assert [token.held(running.if_answered(now)) for now in (10.8, 11.0)] == [True, False]
    assert [whole.held(running.if_answered(now)) for now in (10.9, 11.1)] == [True, False]
    running.arrivals.append((10.7, 4))
    assert whole.held(running.if_answered(20))  # nothing is left to come
    assert not whole.held(running)  # but nobody has said so


def test_a_watch_counts_each_miss_once_and_no_request_that_held() -> None:
    requests: list[Timeline] = []
    watch = Watch(Goal(e2el=1000), requests)
    assert watch.misses(0.0) == 0
    slow, quick = (Timeline(0.0, 4, error=UNANSWERED) for _ in range(2))
    requests += [slow, quick]
    assert watch.misses(0.9) == 0
    quick.arrivals, quick.error = [(0.95, 0)], None
    assert watch.misses(1.1) == 1
    slow.arrivals, slow.error = [(1.2, 0)], None
    requests.append(Timeline(1.0, 4, error="Unavailable"))
    assert watch.misses(1.3) == 1
    assert watch.misses(9.9) == 0


def test_requests_that_were_not_sent_or_not_answered_have_missed_the_limits_goal() -> None:
    limit = Limit(Goal(e2el=500), misses=1)
    assert limit.held([EMBEDDED] * 2, asked=3)
    assert not limit.held([EMBEDDED] * 2, asked=4)
    assert not limit.held([EMBEDDED, STREAMED, Timeline(0.0, 4, error=UNANSWERED)], asked=3)
    assert summary([EMBEDDED, Timeline(0.0, 4, error=UNANSWERED)], ANY)["failed"] == 1


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """MiniLM that computes nothing, and takes long for it."""
    with serve({"minilm": checkpoints.minilm()}, "--threads", "1", pace=Pace(step=0.2)) as running:
        yield running


def test_every_request_is_sent_and_answered_by_a_model_that_computes_nothing(server: Server) -> None:
    requests = [Request([1000 + i] * (4 + i)) for i in range(6)]
    timelines, lost = run(
        load(address=server.address, model="minilm", requests=requests, rate=100.0, processes=2),
        load(address=server.address, model="nobody", requests=requests[:1]),
        limit=Limit(ANY, misses=1),
    )
    assert sorted(timeline.prompt_tokens for timeline in timelines) == [4, 5, 6, 7, 8, 9]
    assert all(timeline.error is None and 0 < timeline.duration < 60 for timeline in timelines)
    assert [timeline.error for timeline in lost] == ["NotFound"]


def test_a_run_that_passes_its_limit_cancels_what_runs_and_sends_no_more(server: Server) -> None:
    asked = load(address=server.address, model="minilm", rate=200.0, processes=2)
    limit = Limit(Goal(e2el=150), misses=20)
    [timelines] = run(asked, limit=limit)
    assert limit.misses < len(timelines) < len(asked.requests)
    assert UNANSWERED in {timeline.error for timeline in timelines} <= {UNANSWERED, None}
    assert not limit.held(timelines, len(asked.requests))
    server.wait_idle()


def test_a_closed_loop_asks_on_until_each_caller_is_answered(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closedloop, "WARM_SECONDS", 0.2)
    monkeypatch.setattr(closedloop, "SECONDS", 0.1)
    rate = closedloop.closed_loop_rate(server.address, "minilm", "embed", [Request([1000] * 4)])
    assert 0 < rate <= 2 * closedloop.CALLERS / 0.1  # 16 answers or those of two batches, in 0.1 s or more
    with pytest.raises(RuntimeError, match="nobody in a closed loop: NotFound"):
        closedloop.closed_loop_rate(server.address, "nobody", "embed", [Request([1000] * 4)])


@pytest.mark.parametrize(
    ("gap", "rate"),
    [(0.5, 2.1), (5.0, 0.2)],  # 21 answers from 5 to 15 s; the 16th after 5 s comes at 80 s
)
def test_a_closed_loop_counts_what_is_answered_once_it_is_warm(
    gap: float, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask_on(*_: object) -> list[Timeline]:
        return [Timeline(0.0, 4, [(gap * i, 0)]) for i in range(60)]

    monkeypatch.setattr(closedloop, "_ask_on", ask_on)
    assert closedloop.closed_loop_rate("", "m", "embed", []) == pytest.approx(rate, rel=0.1)
