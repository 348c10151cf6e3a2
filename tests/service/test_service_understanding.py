"""UnderstandingService over gRPC, with an engine whose heads answer by the ids of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from support.status import Refusal, refused
from tercet.v1.models_pb2 import GetModelRequest, Task
from tercet.v1.types_pb2 import Strings, TextInput, TokenIds
from tercet.v1.understanding_pb2 import (
    Activation,
    Aggregation,
    AnswerRequest,
    ClassifyInput,
    ClassifyRequest,
    FillMaskRequest,
    Question,
    RerankRequest,
    TagRequest,
    ZeroShot,
)

if TYPE_CHECKING:
    from conftest import Stubs

POISON_ID, INVALID_ID, MASK_ID = 50, 51, 59
SPECIAL = 2 + 3  # the ids of [CLS] and [SEP]


def text(value: str, pair: str | None = None) -> ClassifyInput:
    return ClassifyInput(input=TextInput(text=value), pair=pair)


def ids(*values: int) -> TextInput:
    return TextInput(token_ids=TokenIds(values=values))


def softmax(values: list[float]) -> list[float]:
    exponentials = np.exp(np.array(values) - max(values))
    return list(exponentials / exponentials.sum())


def outputs(*read: int, labels: int) -> list[float]:
    """What the head that classifies makes of a sequence."""
    return [sum(read) / len(read) * label / 10 for label in range(1, labels + 1)]


@pytest.mark.parametrize(
    ("model", "tasks"),
    [
        ("nli", ["EMBED", "CLASSIFY", "ZERO_SHOT"]),
        ("reranker", ["EMBED", "RERANK", "CLASSIFY"]),
        ("tagger", ["EMBED", "TAG"]),
        ("masked", ["EMBED", "FILL_MASK", "SCORE"]),
        ("answerer", ["EMBED", "ANSWER"]),
        ("seq2seq", ["EMBED", "GENERATE", "SCORE"]),
    ],
)
def test_a_model_tells_what_it_can(able: Stubs, model: str, tasks: list[str]):
    described = able.models.Get(GetModelRequest(name=model))
    assert list(described.tasks) == [Task.Value(f"TASK_{task}") for task in tasks]


def test_a_model_tells_its_labels_its_mask_and_its_tasks(able: Stubs):
    def described(name: str):
        return able.models.Get(GetModelRequest(name=name))

    assert list(described("nli").labels) == ["CONTRADICTION", "neutral", "entailment"]
    assert list(described("tagger").labels) == ["O", "B-X", "I-X", "Y"]
    assert not described("masked").labels
    assert (described("masked").mask_token, described("nli").mask_token) == ("[MASK]", "")
    assert list(described("seq2seq").generation_tasks) == ["shout"]


class TestClassify:
    """Texts and pairs to the checkpoint's labels."""

    def test_all_labels_sorted(self, able: Stubs):
        request = ClassifyRequest(model="nli", inputs=[text("w9 w10"), text("w9", "w11 w12")])
        response = able.understanding.Classify(request)
        for item, read in zip(response.items, [(2, 9, 10, 3), (2, 9, 3, 11, 12, 3)], strict=True):
            assert [label.label for label in item.labels.labels] == ["entailment", "neutral", "CONTRADICTION"]
            expected = sorted(softmax(outputs(*read, labels=3)), reverse=True)
            np.testing.assert_allclose([label.score for label in item.labels.labels], expected, rtol=1e-5)
            assert item.prompt_tokens == len(read)
        assert response.usage.prompt_tokens == 10

    def test_activations(self, able: Stubs):
        plain = outputs(2, 9, 3, labels=2)[::-1]
        for activation, expected in (
            ("UNSPECIFIED", [1 / (1 + np.exp(-x)) for x in plain]),  # of several labels at once
            ("SIGMOID", [1 / (1 + np.exp(-x)) for x in plain]),
            ("SOFTMAX", softmax(plain)),
            ("NONE", plain),
        ):
            number = Activation.Value(f"ACTIVATION_{activation}")
            request = ClassifyRequest(model="mixed", inputs=[text("w9")], activation=number)
            [item] = able.understanding.Classify(request).items
            np.testing.assert_allclose([label.score for label in item.labels.labels], expected, rtol=1e-5)

    def test_top_k_and_ids(self, able: Stubs):
        inputs = [ClassifyInput(input=ids(9, 10))]
        [item] = able.understanding.Classify(ClassifyRequest(model="nli", inputs=inputs, top_k=1)).items
        assert [label.label for label in item.labels.labels] == ["entailment"]
        assert item.prompt_tokens == 2

    def test_a_seq2seq_decoder_reads_the_source_moved_on(self, able: Stubs):
        inputs = [ClassifyInput(input=ids(9, 40, 10, 11))]  # 40 is the end of sequence, where the head reads
        request = ClassifyRequest(model="pairs", inputs=inputs, activation=Activation.ACTIVATION_NONE)
        [item] = able.understanding.Classify(request).items
        expected = outputs(9, 40, 10, 11, 0, 9, 40, 10, 40, labels=2)[::-1]
        np.testing.assert_allclose([label.score for label in item.labels.labels], expected, rtol=1e-5)

    def test_too_long_is_refused_or_cut(self, able: Stubs):
        inputs = [text("w9 " * 31), text("w9"), text("w9 " * 20, "w8 " * 20)]
        refusals = able.understanding.Classify(ClassifyRequest(model="nli", inputs=inputs)).items
        assert [item.WhichOneof("outcome") for item in refusals] == ["error", "labels", "error"]
        assert Refusal(refusals[0].error).field == "inputs[0].input.text"
        assert "has 43 tokens, the limit is 32" in refusals[2].error.message
        items = able.understanding.Classify(ClassifyRequest(model="nli", inputs=inputs, truncate=True)).items
        assert [(item.prompt_tokens, item.truncated) for item in items] == [(32, True), (3, False), (32, True)]

    def test_an_engines_refusal_is_the_items(self, able: Stubs):
        inputs = [ClassifyInput(input=ids(id)) for id in (POISON_ID, 5, INVALID_ID)]
        items = able.understanding.Classify(ClassifyRequest(model="nli", inputs=inputs)).items
        assert [item.WhichOneof("outcome") for item in items] == ["error", "labels", "error"]
        assert Refusal(items[2].error).field == "inputs[2]"


class TestZeroShot:
    """Texts to the labels of the request."""

    def scores(self, able: Stubs, *, multi_label: bool, labels: tuple[str, ...]) -> dict[str, float]:
        zero_shot = ZeroShot(labels=labels, template="w7 {} w8", multi_label=multi_label)
        request = ClassifyRequest(model="nli", inputs=[text("w9 w10")], zero_shot=zero_shot)
        [item] = able.understanding.Classify(request).items
        scores = [label.score for label in item.labels.labels]
        assert scores == sorted(scores, reverse=True)
        assert item.prompt_tokens == len(labels) * 8
        return {label.label: label.score for label in item.labels.labels}

    @pytest.mark.parametrize("multi_label", [False, True])
    def test_a_hypothesis_for_each_label(self, able: Stubs, multi_label: bool):
        read = {f"w{id}": (2, 9, 10, 3, 7, id, 8, 3) for id in (20, 30, 4)}
        logits = {label: outputs(*ids, labels=3) for label, ids in read.items()}
        if multi_label:
            expected = {label: softmax([values[0], values[2]])[1] for label, values in logits.items()}
        else:
            expected = dict(zip(logits, softmax([values[2] for values in logits.values()]), strict=True))
        assert self.scores(able, multi_label=multi_label, labels=tuple(read)) == pytest.approx(expected, rel=1e-5)

    def test_one_label_is_judged_against_its_contradiction(self, able: Stubs):
        assert self.scores(able, multi_label=False, labels=("w20",)) == self.scores(
            able, multi_label=True, labels=("w20",)
        )

    def test_the_text_is_cut_and_never_the_hypothesis(self, able: Stubs):
        zero_shot = ZeroShot(labels=["w30 w31", "w32"], template="{}")
        request = ClassifyRequest(model="nli", inputs=[text("w9 " * 40)], zero_shot=zero_shot)
        [item] = able.understanding.Classify(request).items
        assert Refusal(item.error).field == "inputs[0].input.text"
        request.truncate = True
        [item] = able.understanding.Classify(request).items
        read = [[2, *[9] * 27, 3, 30, 31, 3], [2, *[9] * 28, 3, 32, 3]]
        expected = softmax([outputs(*ids, labels=3)[2] for ids in read])
        scores = {label.label: label.score for label in item.labels.labels}
        assert scores == pytest.approx(dict(zip(["w30 w31", "w32"], expected, strict=True)), rel=1e-5)
        assert item.truncated


class TestRerank:
    """Texts in the order of their relevance."""

    def test_the_most_relevant_first(self, able: Stubs):
        request = RerankRequest(query="w9", texts=["w4", "w30", "w20 w21", "w30"])
        response = able.understanding.Rerank(request)
        assert [ranked.index for ranked in response.results] == [2, 1, 3, 0]
        expected = 1 / (1 + np.exp(-outputs(2, 9, 3, 30, 3, labels=1)[0]))
        assert response.results[1].score == pytest.approx(expected, rel=1e-5)
        assert response.usage.prompt_tokens == 5 + 5 + 6 + 5
        assert (response.model, response.results[0].truncated) == ("reranker", False)

    def test_top_k_and_plain_scores(self, able: Stubs):
        request = RerankRequest(query="w9", texts=["w4", "w30"], top_k=1, activation=Activation.ACTIVATION_NONE)
        [ranked] = able.understanding.Rerank(request).results
        assert (ranked.index, ranked.score) == (1, pytest.approx(outputs(2, 9, 3, 30, 3, labels=1)[0]))

    def test_the_text_is_cut(self, able: Stubs):
        request = RerankRequest(query="w9 w10", texts=["w4", "w5 " * 40])
        assert refused(lambda: able.understanding.Rerank(request)).field == "texts[1]"
        request.truncate = True
        response = able.understanding.Rerank(request)
        assert {ranked.index: ranked.truncated for ranked in response.results} == {0: False, 1: True}
        request.query = "w9 " * 31
        assert "query: can't be cut" in refused(lambda: able.understanding.Rerank(request)).message


class TestTag:
    """Texts to spans: the fake's head gives the last label to every token, and the scores say which token it was."""

    def test_spans_and_their_text(self, able: Stubs):
        request = TagRequest(texts=["  w9 w10\n", "w11"], aggregation=Aggregation.AGGREGATION_NONE)
        items = able.understanding.Tag(request).items
        spans = [(span.label, span.start, span.end, span.text) for span in items[0].spans.spans]
        assert spans == [("Y", 2, 4, "w9"), ("Y", 5, 8, "w10")]
        assert items[0].spans.spans[0].score == pytest.approx(softmax([0.9, 1.8, 2.7, 3.6])[3], rel=1e-5)
        assert [item.prompt_tokens for item in items] == [4, 3]

    def test_merged_spans_and_ignored_labels(self, able: Stubs):
        [item] = able.understanding.Tag(TagRequest(texts=["w9 w10"])).items
        assert [(span.label, span.text) for span in item.spans.spans] == [("Y", "w9 w10")]
        request = TagRequest(texts=["w9 w10"], ignore_labels=Strings(values=["Y"]))
        assert not able.understanding.Tag(request).items[0].spans.spans

    def test_windows(self, able: Stubs):
        words = " ".join(f"w{4 + i % 30}" for i in range(75))
        [item] = able.understanding.Tag(TagRequest(texts=[words])).items
        assert "with stride" in item.error.message
        [item] = able.understanding.Tag(TagRequest(texts=[words], stride=10)).items
        assert item.prompt_tokens == 32 + 32 + 32 + 17  # windows of 30 tokens and 2 special ones, from 0, 20, 40 and 60
        assert "".join(span.text for span in item.spans.spans)


class TestFillMask:
    """Candidates for masks: the fake prefers small ids."""

    def test_each_mask_has_its_candidates(self, able: Stubs):
        inputs = [TextInput(text="w9 [MASK] w10 [MASK]"), ids(2, MASK_ID, 3)]
        response = able.understanding.FillMask(FillMaskRequest(inputs=inputs))
        assert [len(item.filled.masks) for item in response.items] == [2, 1]
        fills = response.items[0].filled.masks[1].fills
        assert [(fill.token_id, fill.token) for fill in fills][-2:] == [(3, "[SEP]"), (4, "w4")]
        assert [fill.score for fill in fills] == pytest.approx([np.exp(-id / 10) for id in range(5)])
        assert response.usage.prompt_tokens == 6 + 3

    def test_targets_and_top_k(self, able: Stubs):
        targets = Strings(values=["w20", "w11", "w20", "[MASK]"])
        for top_k, expected in ((None, [11, 20, MASK_ID]), (2, [11, 20]), (1000, [11, 20, MASK_ID])):
            request = FillMaskRequest(inputs=[TextInput(text="[MASK]")], targets=targets, top_k=top_k)
            [item] = able.understanding.FillMask(request).items
            assert [fill.token_id for fill in item.filled.masks[0].fills] == expected


class TestAnswer:
    """Questions to spans of contexts: the fake's scores grow with ids."""

    def test_the_best_span_and_offsets(self, able: Stubs):
        request = AnswerRequest(questions=[Question(question="w9", context=" w4 w58  w5 ")], top_k=2)
        response = able.understanding.Answer(request)
        answers = response.items[0].answers.answers
        assert [(a.text, a.start, a.end) for a in answers] == [("w58", 4, 7), ("w4 w58", 1, 7)]
        assert response.items[0].answers.no_answer_score < answers[0].score
        assert response.items[0].prompt_tokens == response.usage.prompt_tokens == 7

    def test_no_answer_is_among_them_where_allowed(self, able: Stubs):
        questions = [Question(question="w9", context="w4")]
        request = AnswerRequest(questions=questions, top_k=2, allow_no_answer=True)
        answers = able.understanding.Answer(request).items[0].answers
        texts = [(answer.text, answer.start, answer.end) for answer in answers.answers]
        assert sorted(texts) == [("", 0, 0), ("w4", 0, 2)]
        assert answers.no_answer_score in [answer.score for answer in answers.answers]

    def test_windows(self, able: Stubs):
        context = " ".join(["w4"] * 60 + ["w58"])
        [item] = able.understanding.Answer(AnswerRequest(questions=[Question(question="w9", context=context)])).items
        assert item.prompt_tokens > 32
        assert item.answers.answers[0].start == context.index("w58")
        request = AnswerRequest(questions=[Question(question="w9", context=context)], max_length=10, stride=2)
        [item] = able.understanding.Answer(request).items
        assert item.prompt_tokens == sum(min(6, 61 - start) + 4 for start in range(0, 59, 4))


LONG = "w9 " * 40
BAD = [
    ("Classify", ClassifyRequest(model="nli"), "inputs"),
    ("Classify", ClassifyRequest(model="nli", inputs=[text("w5")], activation=7), "activation"),  # type: ignore[arg-type]
    ("Classify", ClassifyRequest(model="nli", inputs=[text("w5")], top_k=0), "top_k"),
    ("Classify", ClassifyRequest(model="nli", inputs=[text("w5")], zero_shot=ZeroShot()), "zero_shot.labels"),
    (
        "Classify",
        ClassifyRequest(model="nli", inputs=[text("w5")], zero_shot=ZeroShot(labels=["a", ""])),
        "zero_shot.labels[1]",
    ),
    (
        "Classify",
        ClassifyRequest(model="nli", inputs=[text("w5")], zero_shot=ZeroShot(labels=["a"], template="no place")),
        "zero_shot.template",
    ),
    (
        "Classify",
        ClassifyRequest(
            model="nli", inputs=[text("w5")], zero_shot=ZeroShot(labels=["a"]), activation=Activation.ACTIVATION_NONE
        ),
        "activation",
    ),
    ("Rerank", RerankRequest(query="w5"), "texts"),
    ("Rerank", RerankRequest(query="w5", texts=["w5"], top_k=0), "top_k"),
    ("Rerank", RerankRequest(query="w5", texts=["w5"], activation=Activation.ACTIVATION_SOFTMAX), "activation"),
    ("Rerank", RerankRequest(query="w5", texts=["w5", LONG]), "texts[1]"),
    ("Tag", TagRequest(), "texts"),
    ("Tag", TagRequest(texts=["w5"], aggregation=9), "aggregation"),  # type: ignore[arg-type]
    ("Tag", TagRequest(texts=["w5"], aggregation=Aggregation.AGGREGATION_NONE, stride=1), "stride"),
    ("FillMask", FillMaskRequest(), "inputs"),
    ("FillMask", FillMaskRequest(inputs=[ids(MASK_ID)], top_k=0), "top_k"),
    ("FillMask", FillMaskRequest(inputs=[ids(MASK_ID)], top_k=1001), "top_k"),
    ("FillMask", FillMaskRequest(inputs=[ids(MASK_ID)], targets=Strings()), "targets"),
    ("FillMask", FillMaskRequest(inputs=[ids(MASK_ID)], targets=Strings(values=["w5", "w5 w6"])), "targets.values[1]"),
    ("FillMask", FillMaskRequest(inputs=[ids(MASK_ID)], targets=Strings(values=["nothing"])), "targets.values[0]"),
    ("FillMask", FillMaskRequest(inputs=[ids(MASK_ID)], targets=Strings(values=[""])), "targets.values[0]"),
    ("Answer", AnswerRequest(), "questions"),
    ("Answer", AnswerRequest(questions=[Question(question="w5", context="w6")], top_k=0), "top_k"),
    (
        "Answer",
        AnswerRequest(questions=[Question(question="w5", context="w6")], max_answer_tokens=0),
        "max_answer_tokens",
    ),
    ("Answer", AnswerRequest(questions=[Question(question="w5", context="w6")], max_length=33), "max_length"),
    ("Answer", AnswerRequest(questions=[Question(question="w5", context="w6")], max_length=0), "max_length"),
]


@pytest.mark.parametrize(("method", "request_", "field"), BAD, ids=[f"{m}-{f}-{i}" for i, (m, _, f) in enumerate(BAD)])
def test_bad_requests_name_the_field(able: Stubs, method: str, request_: object, field: str):
    error = refused(lambda: getattr(able.understanding, method)(request_))
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


BAD_ITEMS = [
    ("Classify", ClassifyRequest(model="nli", inputs=[ClassifyInput(), text("w5")]), "inputs[0].input"),
    ("Classify", ClassifyRequest(model="nli", inputs=[ClassifyInput(input=ids(5), pair="w5")]), "inputs[0].input"),
    (
        "Classify",
        ClassifyRequest(model="nli", inputs=[ClassifyInput(input=ids(5))], zero_shot=ZeroShot(labels=["a"])),
        "inputs[0].input",
    ),
    (
        "Classify",
        ClassifyRequest(model="nli", inputs=[text("w5", "w6")], zero_shot=ZeroShot(labels=["a"])),
        "inputs[0].pair",
    ),
    (
        "Classify",
        ClassifyRequest(model="nli", inputs=[text("w5")] * 2000, zero_shot=ZeroShot(labels=["a", "b", "c"])),
        "inputs[1365]",
    ),
    ("Tag", TagRequest(texts=[LONG]), "texts[0]"),
    ("Tag", TagRequest(texts=[LONG], stride=30), "texts[0]"),
    ("Tag", TagRequest(texts=["w5 " * 5000], stride=29), "texts[0]"),
    ("FillMask", FillMaskRequest(inputs=[TextInput(text="w5")]), "inputs[0]"),
    ("FillMask", FillMaskRequest(inputs=[TextInput(text=LONG + "[MASK]")]), "inputs[0].text"),
    ("FillMask", FillMaskRequest(inputs=[ids(60)]), "inputs[0].token_ids.values[0]"),
    ("Answer", AnswerRequest(questions=[Question(question="w5")]), "questions[0].context"),
    ("Answer", AnswerRequest(questions=[Question(context="w5")]), "questions[0].question"),
    ("Answer", AnswerRequest(questions=[Question(question="w5", context=" ")]), "questions[0].context"),
    ("Answer", AnswerRequest(questions=[Question(question=LONG, context="w5")]), "questions[0].question"),
    (
        "Answer",
        AnswerRequest(questions=[Question(question="w5", context=LONG)], max_length=10, stride=6),
        "questions[0].question",
    ),
]


@pytest.mark.parametrize(
    ("method", "request_", "field"), BAD_ITEMS, ids=[f"{m}-{f}-{i}" for i, (m, _, f) in enumerate(BAD_ITEMS)]
)
def test_bad_items_name_the_field_and_leave_their_neighbours(able: Stubs, method: str, request_: object, field: str):
    items = getattr(able.understanding, method)(request_).items
    errors = [Refusal(item.error) for item in items if item.WhichOneof("outcome") == "error"]
    assert (errors[0].code, errors[0].field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    place = int(field.partition("[")[2].partition("]")[0])
    others = [item.WhichOneof("outcome") == "error" for item in items]
    assert others.index(True) == place


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Classify", ClassifyRequest(model="tagger", inputs=[text("w5")])),
        ("Classify", ClassifyRequest(model="mixed", inputs=[text("w5")], zero_shot=ZeroShot(labels=["a"]))),
        ("Rerank", RerankRequest(model="nli", query="w5", texts=["w5"])),
        ("FillMask", FillMaskRequest(model="decoder", inputs=[ids(5)])),
    ],
)
def test_a_task_that_a_model_cannot_do(able: Stubs, method: str, request_: object):
    error = refused(lambda: getattr(able.understanding, method)(request_))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "it can embed" in error.message
