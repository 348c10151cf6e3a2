"""Many generations over one stream: results and pieces by key, errors one by one, streams that break, leaving."""

import asyncio
import time

import grpc
import pytest

import tercet.client as tercet
from support.fake_service import REFUSED, Failure, error_info, retry_info
from tercet.client import AsyncClient, Client

FULL = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (error_info("QUEUE_FULL"), retry_info(0.05)))
AWAY = Failure(grpc.StatusCode.UNAVAILABLE, "away")


@pytest.fixture
def many(kind, fake):
    """All that `generate_many` or `stream_many` brings."""

    def run(method, *args, **kwargs):
        if kind.__name__ == "Caller":
            with Client(fake.address, timeout=10) as client:
                return list(getattr(client, method)(*args, **kwargs))

        async def collect():
            async with AsyncClient(fake.address, timeout=10) as client:
                return [outcome async for outcome in getattr(client, method)(*args, **kwargs)]

        return asyncio.run(collect())

    return run


def test_results_have_the_keys_of_their_requests(many, fake):
    results = dict(many("generate_many", ["a b c", [1, 2], [{"role": "user", "content": "hi"}]], max_new_tokens=4))
    assert {key: result.text for key, result in results.items()} == {
        0: "a b c a",
        1: "1 2 1 2",
        2: "user:hi user:hi user:hi user:hi",
    }
    first = results[0]
    assert (first.token_ids, first.finish_reason, first.model, first.seed) == ([0, 1, 2, 3], "length", "echo", 9)
    assert (first.usage.prompt_tokens, first.usage.generated_tokens) == (5, 4)
    assert len(fake.attempts("GenerateMany")) == 1
    named = dict(many("generate_many", {"x": "a", "y": "b c"}))
    assert {key: result.text for key, result in named.items()} == {"x": "a", "y": "b c"}


def test_requests_with_options_of_their_own(many, fake):
    asked = [{"prompt": "a", "max_new_tokens": 2, "seed": 7}, "b", {"prompt": "c", "model": "other", "n": 2}]
    results = dict(many("generate_many", asked, max_new_tokens=3, model="echo", truncate=True))
    assert [results[key].text for key in range(3)] == ["a a", "b b b", "c c c"]
    assert [output.index for output in results[2].outputs] == [0, 1]
    sent = [request for _, request in fake.started]
    assert [request.model for request in sent] == ["echo", "echo", "other"]
    assert [request.sampling.seed for request in sent] == [7, 0, 0]
    assert all(request.truncate for request in sent)


def test_pieces_join_to_the_results(many):
    pieces = many("stream_many", {"x": "a b c", "y": "d e"}, logprobs=True, echo=True, n=2)
    for key, words in {"x": "a b c", "y": "d e"}.items():
        mine = [piece for of, piece in pieces if of == key]
        for index in (0, 1):
            assert "".join(piece.text for piece in mine if piece.index == index) == words
        assert [piece.usage is not None for piece in mine] == [False] * (len(mine) - 1) + [True]
        assert mine[-1].usage.generated_tokens == 2 * len(words.split())
        assert [piece.finish_reason for piece in mine] == [None] * (len(mine) - 2) + ["length"] * 2
        assert {piece.seed for piece in mine} == {9}
        assert [piece.prompt_token_ids for piece in mine] == [[8, 9]] + [[]] * (len(mine) - 1)
        assert all(len(piece.logprobs) == len(piece.token_ids) == 1 for piece in mine)


def test_any_number_is_read_as_there_is_room(many, fake):
    read = []

    def endless():
        for number in range(300):
            read.append(number)
            assert number < len(fake.started) + 10
            yield f"{number}"

    results = many("generate_many", endless(), concurrency=5, max_new_tokens=2)
    assert sorted(key for key, _ in results) == list(range(300))
    assert all(result.text == f"{key} {key}" for key, result in results)
    assert 1 < fake.most_running <= 5
    keys = [key for key, _ in fake.started]
    assert keys == sorted(set(keys))


def test_nothing_asks_nothing(many, fake):
    assert many("generate_many", []) == []
    assert not fake.attempts("GenerateMany")


def test_an_error_is_raised_with_its_number_or_returned(many, fake):
    asked = ["a", REFUSED, "b"]
    with pytest.raises(tercet.InvalidArgument, match=r"input\.text") as raised:
        many("generate_many", asked)
    assert raised.value.index == 1
    for method in ("generate_many", "stream_many"):
        results = dict(many(method, asked, errors="return"))
        assert [results[0].text, results[2].text] == ["a", "b"]
        assert isinstance(results[1], tercet.InvalidArgument)
    named = dict(many("generate_many", {"x": REFUSED}, errors="return"))
    assert named["x"].index is None


def test_what_can_not_be_sent_fails_alone(many, fake):
    results = dict(many("generate_many", ["a", {"prompt": "b", "seed": -1}, "c"], errors="return"))
    assert results[1].field == "sampling.seed"
    assert [results[0].text, results[2].text] == ["a", "c"]


@pytest.mark.parametrize(
    ("asked", "options", "error", "problem"),
    [
        ("text", {}, TypeError, "a list of prompts is expected, got str"),
        ([{"seed": 3}], {}, TypeError, r"requests\[0\]: has no prompt"),
        (["a"], {"tempo": 3}, TypeError, "unexpected keyword argument 'tempo'"),
        (["a"], {"errors": "ignore"}, ValueError, "errors must be"),
        (["a"], {"concurrency": 0}, ValueError, "concurrency must be at least 1"),
    ],
)
def test_misuse_is_told(many, asked, options, error, problem):
    with pytest.raises(error, match=problem):
        many("generate_many", asked, **options)


def test_what_the_server_has_no_room_for_is_asked_again_when_it_says(many, fake):
    fake.failures["generation"] = [None, FULL, FULL, None]
    start = time.monotonic()
    results = dict(many("generate_many", ["a", "b"]))
    assert {key: result.text for key, result in results.items()} == {0: "a", 1: "b"}
    assert time.monotonic() - start > 0.1
    assert len(fake.started) == 4
    assert len(fake.attempts("GenerateMany")) == 1


def test_what_fails_again_and_again_is_given_up(many, fake):
    fake.failures["generation"] = [AWAY] * 9
    [(key, error)] = many("generate_many", ["a"], errors="return")
    assert (key, type(error), error.index) == (0, tercet.Unavailable, 0)
    assert len(fake.started) == 4
    fake.failures["generation"] = [FULL] * 999
    [(_, error)] = many("generate_many", ["a"], errors="return", timeout=0.4)
    assert isinstance(error, tercet.ResourceExhausted | tercet.DeadlineExceeded)


def test_a_stream_that_breaks_is_taken_up_where_results_are_asked(many, fake):
    fake.failures["midway"] = [AWAY, AWAY]
    results = dict(many("generate_many", ["a b c", "d e f"], seed=1))
    assert {key: result.text for key, result in results.items()} == {0: "a b c", 1: "d e f"}
    assert results[0].token_ids == [0, 1, 2]  # nothing twice
    assert len(fake.attempts("GenerateMany")) == 3


def test_pieces_are_never_repeated(many, fake):
    fake.delay = 0.1  # the first ones arrive before the error does
    fake.failures["midway"] = [AWAY]
    outcomes = many("stream_many", ["a b", "c d", "e f"], errors="return", concurrency=2)
    broken = {key for key, value in outcomes if isinstance(value, tercet.Unavailable)}
    assert broken
    for key, words in enumerate(["a b", "c d", "e f"]):
        text = "".join(value.text for of, value in outcomes if of == key and not isinstance(value, Exception))
        assert text == (words.split()[0] + " " if key in broken else words)


def test_a_call_that_can_not_go_on_raises(many, fake):
    fake.failures["GenerateMany"] = [Failure(grpc.StatusCode.UNAUTHENTICATED, "who are you", pushback=-1)] * 9
    with pytest.raises(tercet.Unauthenticated, match="who are you"):
        many("generate_many", ["a"], errors="return")
    fake.failures.clear()
    fake.delay = 30
    with pytest.raises(tercet.DeadlineExceeded):
        many("generate_many", ["a"], timeout=0.2)


def test_leaving_the_loop_cancels(many, fake, kind):
    fake.delay = 0.01
    asked = {"max_new_tokens": 5000}
    if kind.__name__ == "Caller":
        with Client(fake.address) as client:
            for _ in client.stream_many(["a", "b"], **asked):
                break
            assert fake.stream_ended.wait(5)
    else:

        async def leave():
            async with AsyncClient(fake.address) as client:
                async for _ in client.stream_many(["a", "b"], **asked):
                    break
                assert await asyncio.to_thread(fake.stream_ended.wait, 5)

        asyncio.run(leave())
    assert fake.pieces_sent < 500


def test_closing_ends_the_loop(fake):
    fake.delay = 0.01
    with Client(fake.address) as client, client.stream_many(["a"], max_new_tokens=5000) as stream:
        pieces = 0
        for _ in stream:
            pieces += 1
            stream.close()
        assert pieces == 1
        assert list(stream) == []


def test_a_broken_stream_is_not_mended_for_ever(many, fake):
    fake.failures["GenerateMany"] = [Failure(grpc.StatusCode.UNAVAILABLE, "away", pushback=-1)] * 9
    with pytest.raises(tercet.Unavailable, match="away"):
        many("generate_many", ["a"])
    assert len(fake.attempts("GenerateMany")) == 4
