"""What heads say over gRPC, against transformers' pipelines on the same checkpoints: the same labels, spans and order.

The pipeline that answers questions is gone from transformers: its algorithm is written down in `answers`.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, pipeline
from transformers.pipelines.document_question_answering import select_starts_ends

from support import packaged
from support.checkpoints import CORPUS, save, tiny
from support.server import running_server
from tercet.v1.types_pb2 import Strings, TextInput
from tercet.v1.understanding_pb2 import (
    Activation,
    Aggregation,
    AnswerRequest,
    ClassifyInput,
    ClassifyRequest,
    FillMaskRequest,
    Question,
    TagRequest,
    ZeroShot,
)
from tercet.v1.understanding_pb2_grpc import UnderstandingServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import BatchEncoding

COUNT = 200
TOLERANCE = 1e-4
LENGTH = 96  # tokens
TAGS = dict(enumerate(("O", "B-PER", "I-PER", "B-LOC", "I-LOC")))
INFERENCE = dict(enumerate(("contradiction", "neutral", "entailment")))
AGGREGATIONS = ("simple", "none", "first", "average", "max")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By head; the tagger has a vocabulary that marks tokens inside words."""
    folder = tmp_path_factory.mktemp("heads")
    words = AutoTokenizer.from_pretrained(packaged.minilm())
    words.model_max_length = LENGTH
    tags = save(folder / "tags", "bert", "BertForTokenClassification", vocab_size=words.vocab_size, id2label=TAGS)
    words.save_pretrained(tags)
    inference = {
        "id2label": INFERENCE,
        "label2id": {label: i for i, label in INFERENCE.items()},
        "num_labels": len(INFERENCE),
        "max_position_embeddings": LENGTH,
    }
    return {
        "tags": tags,
        "mask": tiny(folder / "mask", "bert", "BertForMaskedLM"),
        "answer": tiny(folder / "answer", "bert", "BertForQuestionAnswering"),
        "bert": tiny(folder / "bert", "bert", "BertForSequenceClassification", **inference),
        "bart": tiny(folder / "bart", "bart", "BartForSequenceClassification", **inference),
        "mbart": tiny(folder / "mbart", "mbart", "MBartForSequenceClassification", **inference),
        "mbart-answer": tiny(
            folder / "mbart-answer", "mbart", "MBartForQuestionAnswering", max_position_embeddings=LENGTH
        ),
        "gpt2": tiny(folder / "gpt2", "gpt2", "GPT2ForSequenceClassification"),
    }


@pytest.fixture(scope="module")
def stub(checkpoints: dict[str, Path]) -> Iterator[UnderstandingServiceStub]:
    with running_server(checkpoints, "--dtype", "float32") as server, grpc.insecure_channel(server.address) as channel:
        yield UnderstandingServiceStub(channel)


def texts(seed: int, most: int = 12) -> list[str]:
    """Random texts of words that the vocabularies know and of others."""
    rng = random.Random(seed)
    words = [*" ".join(CORPUS).split(), "Zürich", "😀", "unaffable", "U.S.A.", "naïve—so", "12,345"]
    return [" ".join(rng.choices(words, k=rng.randint(1, most))) + rng.choice(("", ".", " !")) for _ in range(COUNT)]


def reference(task: str, folder: Path, **options: Any) -> Any:
    """transformers' pipeline, whose tokenizer gives token types to BERT alone."""
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * (folder.name not in ("bart", "mbart", "gpt2"))
    tokenizer = AutoTokenizer.from_pretrained(folder, model_input_names=names)
    return pipeline(task, str(folder), tokenizer=tokenizer, device="cpu", **options)


def assert_scores(found: list[Any], expected: list[dict[str, Any]]) -> None:
    scores = [each["score"] for each in expected]
    np.testing.assert_allclose([each.score for each in found], scores, atol=TOLERANCE, rtol=0)


def assert_spans(text: str, spans: list[Any], expected: list[dict[str, Any]]) -> None:
    assert [(span.label, span.start, span.end) for span in spans] == [
        (entity.get("entity_group") or entity["entity"], entity["start"], entity["end"]) for entity in expected
    ]
    assert all(span.text == text[span.start : span.end] for span in spans)
    assert_scores(spans, expected)


def test_tag(stub: UnderstandingServiceStub, checkpoints: dict[str, Path]):
    tagger = reference("token-classification", checkpoints["tags"])
    given = texts(1)
    for i, name in enumerate(AGGREGATIONS):
        own = given[i :: len(AGGREGATIONS)]
        kind = Aggregation.Value(f"AGGREGATION_{name.upper()}")
        items = stub.Tag(TagRequest(model="tags", texts=own, aggregation=kind)).items
        for text, item, expected in zip(own, items, tagger(own, aggregation_strategy=name), strict=True):
            assert_spans(text, list(item.spans.spans), expected)


def test_tag_in_windows(stub: UnderstandingServiceStub, checkpoints: dict[str, Path]):
    tagger = reference("token-classification", checkpoints["tags"], aggregation_strategy="first", stride=20)
    long = [" ".join(texts(seed)[:25]) for seed in range(5)]
    kind = Aggregation.AGGREGATION_FIRST
    items = stub.Tag(TagRequest(model="tags", texts=long, aggregation=kind, stride=20)).items
    for text, item, expected in zip(long, items, tagger(long), strict=True):
        assert item.prompt_tokens > 2 * LENGTH
        assert_spans(text, list(item.spans.spans), expected)


def test_fill_mask(stub: UnderstandingServiceStub, checkpoints: dict[str, Path]):
    filler = reference("fill-mask", checkpoints["mask"])
    rng = random.Random(2)
    given: list[str] = []
    for text in texts(2):
        words = text.split()
        for place in rng.sample(range(len(words)), min(len(words), rng.randint(1, 2))):
            words[place] = "[MASK]"
        given.append(" ".join(words))
    targets = ["Ġthe", "Ġfox", "t", "é"]
    targets = [target for target in targets if target in filler.tokenizer.get_vocab()]
    for top_k, wanted in ((4, None), (3, targets)):
        inputs = [TextInput(text=text) for text in given]
        asked = None if wanted is None else Strings(values=wanted)
        items = stub.FillMask(FillMaskRequest(model="mask", inputs=inputs, top_k=top_k, targets=asked)).items
        options = {} if wanted is None else {"targets": wanted}
        for text, item, expected in zip(given, items, filler(given, top_k=top_k, **options), strict=True):
            masks = [expected] if text.count("[MASK]") == 1 else expected
            for mask, fills in zip(item.filled.masks, masks, strict=True):
                assert [(fill.token_id, fill.token) for fill in mask.fills] == [
                    (fill["token"], fill["token_str"]) for fill in fills
                ]
                assert_scores(list(mask.fills), fills)


def assert_labels(items: Any, expected: list[list[dict[str, Any]]]) -> None:
    for item, labels in zip(items, expected, strict=True):
        assert [label.label for label in item.labels.labels] == [label["label"] for label in labels]
        assert_scores(list(item.labels.labels), labels)


@pytest.mark.parametrize("model", ["bert", "bart", "mbart", "gpt2"])
def test_classify(stub: UnderstandingServiceStub, checkpoints: dict[str, Path], model: str):
    classifier = reference("text-classification", checkpoints[model], top_k=None)
    given = texts(3)
    inputs = [ClassifyInput(input=TextInput(text=text)) for text in given]
    assert_labels(stub.Classify(ClassifyRequest(model=model, inputs=inputs)).items, classifier(given))
    for name in ("sigmoid", "none"):
        kind = Activation.Value(f"ACTIVATION_{name.upper()}")
        items = stub.Classify(ClassifyRequest(model=model, inputs=inputs[:20], activation=kind)).items
        assert_labels(items, classifier(given[:20], function_to_apply=name))


def test_classify_pairs(stub: UnderstandingServiceStub, checkpoints: dict[str, Path]):
    classifier = reference("text-classification", checkpoints["bert"], top_k=None)
    pairs = list(zip(texts(4), texts(5), strict=True))
    inputs = [ClassifyInput(input=TextInput(text=first), pair=second) for first, second in pairs]
    items = stub.Classify(ClassifyRequest(model="bert", inputs=inputs)).items
    assert_labels(items, [classifier({"text": first, "text_pair": second}) for first, second in pairs])


@pytest.mark.parametrize(("model", "multi_label"), [("bert", False), ("bart", True)])
def test_zero_shot(stub: UnderstandingServiceStub, checkpoints: dict[str, Path], model: str, multi_label: bool):
    classifier = reference("zero-shot-classification", checkpoints[model])
    labels, template = ["house", "river song"], "once upon {}, then"
    given = texts(6)
    zero_shot = ZeroShot(labels=labels, template=template, multi_label=multi_label)
    inputs = [ClassifyInput(input=TextInput(text=text)) for text in given]
    items = stub.Classify(ClassifyRequest(model=model, inputs=inputs, zero_shot=zero_shot)).items
    expected = classifier(given, labels, hypothesis_template=template, multi_label=multi_label)
    assert_labels(
        items,
        [
            [{"label": label, "score": score} for label, score in zip(each["labels"], each["scores"], strict=True)]
            for each in expected
        ],
    )


def answers(read: BatchEncoding, outputs: Any, context: str, cls: int, top_k: int) -> list[tuple[int, int, float]]:
    """As transformers 4.57 made answers of a model's outputs for windows on a context: the likeliest spans of each
    window, widened to words, those of one text together; and, at the end, that there is none.
    """
    found: dict[str, list[Any]] = {}
    least = 1e6
    for i, window in enumerate(read.encodings):
        ids = np.array(window.ids)
        outside = np.array([sequence != 1 for sequence in window.sequence_ids]) & (ids != cls)
        starts, ends, scores, least = select_starts_ends(
            outputs.start_logits[i : i + 1].numpy(), outputs.end_logits[i : i + 1].numpy(),
            outside[None].astype(int), np.array(window.attention_mask)[None], least, 2 * top_k + 10, True, 15,
        )  # fmt: skip
        for start, end, score in zip(starts, ends, scores, strict=True):
            if score > 0:
                first = window.word_to_chars(window.token_to_word(start), 1)[0]
                last = window.word_to_chars(window.token_to_word(end), 1)[1]
                found.setdefault(context[first:last].lower(), [first, last, 0.0])[2] += float(score)
    return sorted(([*map(tuple, found.values()), (0, 0, least)]), key=lambda answer: -answer[2])[:top_k]


@pytest.mark.parametrize(
    ("name", "windows"), [("answer", False), ("answer", True), ("mbart-answer", False), ("mbart-answer", True)]
)
def test_answer(stub: UnderstandingServiceStub, checkpoints: dict[str, Path], name: str, windows: bool):
    model = AutoModelForQuestionAnswering.from_pretrained(checkpoints[name])
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[name])
    length, stride, top_k = (60, 10, 3) if windows else (LENGTH, 20, 3)
    asked = list(zip(texts(7, 3), texts(8, 30 if windows else 8), strict=True))
    request = AnswerRequest(
        model=name,
        questions=[Question(question=question, context=context) for question, context in asked],
        max_length=length,
        stride=stride,
        top_k=top_k,
        allow_no_answer=True,
    )
    several = 0
    for (question, context), item in zip(asked, stub.Answer(request).items, strict=True):
        read = tokenizer(
            question, context, truncation="only_second", max_length=length, stride=stride, padding=True,
            return_overflowing_tokens=True, return_token_type_ids=name == "answer", return_tensors="pt",
        )  # fmt: skip
        several += len(read.encodings) > 1
        read.pop("overflow_to_sample_mapping")
        with torch.inference_mode():
            outputs = model(**read)
        expected = answers(read, outputs, context, tokenizer.cls_token_id, top_k)
        found = item.answers.answers
        assert [(answer.start, answer.end) for answer in found] == [(start, end) for start, end, _ in expected]
        assert [answer.text for answer in found] == [context[start:end] for start, end, _ in expected]
        scores = [score for *_, score in expected]
        np.testing.assert_allclose([answer.score for answer in found], scores, atol=TOLERANCE, rtol=0)
    assert (several > COUNT // 4) == windows
