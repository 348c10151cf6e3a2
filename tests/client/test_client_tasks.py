"""Reranking, classifying, tagging, filling masks, answering and scoring: what is sent and returned."""

import grpc
import pytest

from support.fake_service import REFUSED, Failure
from tercet.client import (
    Answer,
    DeadlineExceeded,
    Fill,
    InvalidArgument,
    Label,
    NotFound,
    Ranked,
    Span,
    requests,
)
from tercet.v1.types_pb2 import TokenIds
from tercet.v1.understanding_pb2 import ACTIVATION_NONE, AGGREGATION_MAX


def sent(fake, method):
    return [request for _, request, *_ in fake.attempts(method)]


def set_fields(message):
    return {field.name for field, _ in message.ListFields()}


def test_rerank(ask, fake):
    assert ask("rerank", "q", ["a", "abc", "ab"]) == [Ranked(1, 3, False), Ranked(2, 2, False), Ranked(0, 1, False)]
    assert ask("rerank", "q", (t for t in ("a", "ab")), top_k=1, activation="none") == [Ranked(1, 2, False)]
    plain, full = sent(fake, "Rerank")
    assert set_fields(plain) == {"query", "texts"}
    assert (full.top_k, full.activation) == (1, ACTIVATION_NONE)


def test_classify_one_text_many_texts_and_pairs(ask, fake):
    assert ask("classify", "abc") == [Label("good", 3), Label("bad", 3)]
    assert ask("classify", [7, 8]) == [Label("good", 2), Label("bad", 2)]
    assert [labels[0].score for labels in ask("classify", ["a", "abcd", [1, 2]])] == [1, 4, 2]
    assert ask("classify", ("ab", "cde"))[0].score == 5
    assert [labels[0].score for labels in ask("classify", [("a", "b"), "abc"])] == [2, 3]
    one, _, _, pair, _ = sent(fake, "Classify")
    assert set_fields(one) == {"inputs"}
    assert (pair.inputs[0].input.text, pair.inputs[0].pair) == ("ab", "cde")


def test_classify_by_labels_of_the_callers_own(ask, fake):
    labels = ask("classify", "ab", labels=["sport", "art"], template="About {}.", multi_label=True, top_k=2)
    assert labels == [Label("sport", 2), Label("art", 2)]
    (request,) = sent(fake, "Classify")
    assert (request.zero_shot.template, request.zero_shot.multi_label, request.top_k) == ("About {}.", True, 2)


def test_tag(ask, fake):
    assert ask("tag", "né ab") == [Span("WORD", 0, 2, "né", 1), Span("WORD", 3, 5, "ab", 1)]
    assert [len(spans) for spans in ask("tag", ["a b c", ""])] == [3, 0]
    ask("tag", "a", aggregation="max", ignore_labels=[], stride=8, model="echo")
    request = sent(fake, "Tag")[-1]
    assert (request.aggregation, request.stride, request.model) == (AGGREGATION_MAX, 8, "echo")
    assert request.HasField("ignore_labels")


def test_fill_mask(ask, fake):
    assert ask("fill_mask", "[MASK] is [MASK]") == [[Fill("a", 0, 0.5), Fill("b", 1, 0.5)]] * 2
    assert [len(masks) for masks in ask("fill_mask", ["[MASK]", "[MASK] [MASK]"], targets="x")] == [1, 2]
    assert list(sent(fake, "FillMask")[-1].targets.values) == ["x"]


def test_answer(ask):
    answers = ask("answer", "who", "tell me who it is")
    assert answers == [Answer("who", 8, 11, 0.75)]
    assert answers.no_answer_score == 0.25
    assert [found[0].start for found in ask("answer", ["a", "b"], "ab")] == [0, 1]
    assert [found[0].start for found in ask("answer", "b", ["ab", "b"])] == [1, 0]
    assert [found[0].start for found in ask("answer", ["a", "b"], ["ba", "b"])] == [1, 0]


def test_score(ask, fake):
    scored = ask("score", "ab")
    assert (scored.token_ids, scored.logprobs, scored.total, scored.perplexity) == ([97, 98], [-1, -1], -2, 2.5)
    assert ask("score", "a", "bc").token_ids == [97, 98, 99]
    assert [s.token_ids for s in ask("score", "a", ["b", "c"], target_lang="de")] == [[97, 98], [97, 99]]
    assert [s.total for s in ask("score", ["a", "ab"])] == [-1, -2]
    plain, pair, many, _ = sent(fake, "Score")
    assert not plain.inputs[0].HasField("source")
    assert (pair.inputs[0].source.text, pair.inputs[0].text.text) == ("a", "bc")
    assert many.target_lang == "de"


@pytest.mark.parametrize("method", ["classify", "tag"])
def test_long_lists_are_split_and_errors_bear_their_place(ask, fake, method):
    texts = ["a"] * 300
    assert len(ask(method, texts)) == 300
    assert len(sent(fake, method.capitalize())) == 2
    texts[280] = REFUSED
    with pytest.raises(InvalidArgument, match=r"\[280\]") as caught:
        ask(method, texts)
    assert caught.value.index == 280
    assert requests.BATCH_ITEMS < 280
    results = ask(method, texts, errors="return")
    assert [i for i, result in enumerate(results) if isinstance(result, InvalidArgument)] == [280]


def test_questions_are_renumbered_too(ask):
    with pytest.raises(InvalidArgument, match=r"questions\[270\]"):
        ask("answer", ["a"] * 270 + [REFUSED], "abc")


@pytest.mark.parametrize(
    ("method", "arguments", "options", "field"),
    [
        ("rerank", ("q", ["\ud800"]), {}, "texts[0]"),
        ("rerank", ("q", ["a"]), {"top_k": -1}, "top_k"),
        ("rerank", ("q", ["a"]), {"activation": "tanh"}, "activation"),
        ("classify", ([],), {}, "inputs"),
        ("classify", (("a", "\ud800"),), {}, "inputs[0]"),
        ("classify", ("a",), {"template": "{}"}, "labels"),
        ("tag", ("a",), {"aggregation": "best"}, "aggregation"),
        ("tag", ("a",), {"stride": 2**32}, "stride"),
        ("fill_mask", ("a",), {"top_k": -1}, "top_k"),
        ("answer", (["a", "b"], ["c"] * 3), {}, "context"),
        ("score", ("a", ["\ud800"]), {}, "inputs[0].text"),
    ],
)
def test_values_out_of_range_are_refused_before_they_are_sent(ask, fake, method, arguments, options, field):
    with pytest.raises(InvalidArgument) as caught:
        ask(method, *arguments, **options)
    assert caught.value.field == field
    assert field in str(caught.value)
    assert fake.requests == []


@pytest.mark.parametrize(
    ("method", "arguments", "options", "named"),
    [
        ("rerank", ("q", "text"), {}, "texts"),
        ("rerank", (["q"], ["a"]), {}, "query"),
        ("classify", ("a",), {"top": 1}, "top"),
        ("classify", ([("a", 1)],), {}, r"inputs\[0\]"),
        ("tag", ([[1, 2]],), {}, r"texts\[0\]"),
        ("fill_mask", ("a",), {"top_k": "many"}, "top_k"),
        ("answer", ("a", [["b"]]), {}, r"questions\[0\].context"),
        ("score", (b"a",), {}, "inputs"),
    ],
)
def test_wrong_types_are_refused_before_they_are_sent(ask, fake, method, arguments, options, named):
    with pytest.raises(TypeError, match=named):
        ask(method, *arguments, **options)
    assert fake.requests == []


def test_errors_argument_has_two_values(ask):
    with pytest.raises(ValueError, match="return"):
        ask("classify", ["a"], errors="ignore")


def test_timeouts_apply(ask, fake):
    fake.delay = 2
    with pytest.raises(DeadlineExceeded):
        ask("classify", "a", timeout=0.1)


def test_errors_of_a_call_are_typed(ask, fake):
    fake.failures["Rerank"] = [Failure(grpc.StatusCode.NOT_FOUND, "no model")]
    with pytest.raises(NotFound, match="no model"):
        ask("rerank", "q", ["a"], model="x")


def test_batches_never_exceed_the_limits_nor_lose_items():
    items = [TokenIds(packed=bytes(size)) for size in (0, 1, 600_000, 599_999, 1_200_000, 2, 3)]
    batches = [*requests.batches(items)]
    assert [item for batch in batches for item in batch] == items
    assert all(len(batch) == 1 or sum(item.ByteSize() for item in batch) <= requests.BATCH_BYTES for batch in batches)
