"""Spans from what heads say of tokens, against transformers: 200 random texts, by two kinds of vocabulary."""

from __future__ import annotations

import random
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, TokenClassificationPipeline
from transformers.pipelines.document_question_answering import select_starts_ends
from transformers.pipelines.token_classification import AggregationStrategy

from support import packaged
from support.checkpoints import tiny_bert
from tercet.server.text import load_text_model
from tercet.server.text.spans import Subwords, answer_spans, label_spans

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from tercet.server.text import TextModel

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC", "I-DE-NO")
WORDS = (
    "the", "quick", "Zürich", "naïve", "café", "unaffable", "😀", "don't", "U.S.A.", "你好", "12345", "e\u0301clair",
)  # fmt: skip
CASES = 100  # of each kind
Tokenizers = tuple["TextModel", "PreTrainedTokenizerBase"]


@pytest.fixture(scope="module", params=["marked subwords", "bytes"])
def tokenizers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizers:
    """A vocabulary that marks tokens inside words, and one that does not."""
    folder: Path = packaged.minilm() if request.param == "marked subwords" else tiny_bert(tmp_path_factory.mktemp("b"))
    return load_text_model(folder), AutoTokenizer.from_pretrained(folder)


def random_text(rng: random.Random, most: int = 20) -> str:
    words = rng.choices(WORDS, k=rng.randint(1, most))
    return "".join(word + rng.choice((" ", " ", "  ", "", "\n", ", ")) for word in words)


def random_outputs(rng: np.random.Generator, tokens: int, columns: int) -> np.ndarray:
    """Scores that lean to runs of one label."""
    lean = np.repeat(rng.normal(size=(tokens // 3 + 1, columns)), 3, axis=0)[:tokens]
    return (rng.normal(size=(tokens, columns)) + 2 * lean).astype("float32")


@pytest.fixture(scope="module")
def pipeline(tokenizers: Tokenizers) -> TokenClassificationPipeline:
    """transformers', without a model: its outputs are ours to choose."""
    made = TokenClassificationPipeline.__new__(TokenClassificationPipeline)
    made.tokenizer = tokenizers[1]
    made.model = SimpleNamespace(config=SimpleNamespace(id2label=dict(enumerate(LABELS))))
    return made


@pytest.mark.parametrize("windows", [False, True], ids=["whole", "windows"])
@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
def test_labelled_spans(tokenizers: Tokenizers, pipeline: Any, aggregation: str, windows: bool):
    model, reference = tokenizers
    rng, numbers = random.Random(aggregation), np.random.default_rng(len(aggregation))
    found = 0
    for _ in range(CASES if not windows else CASES // 4):
        text = random_text(rng)
        length, stride = (rng.randint(12, 24), rng.randint(0, 6)) if windows else (10_000, 0)
        theirs = reference(
            text,
            max_length=length,
            stride=stride,
            truncation=True,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        ours = model.tokenizer.encode(text, spans=True).windows(length, stride)
        assert [window.ids for window in ours] == theirs["input_ids"]
        outputs = [random_outputs(numbers, len(window), len(LABELS)) for window in ours]
        ignore = rng.choice((("O",), (), ("PER", "O", "B-LOC")))
        chunks = [
            {
                "logits": torch.from_numpy(output)[None],
                "sentence": text,
                "input_ids": torch.tensor(theirs["input_ids"][i])[None],
                "offset_mapping": torch.tensor(theirs["offset_mapping"][i])[None],
                "special_tokens_mask": torch.tensor(theirs["special_tokens_mask"][i])[None],
            }
            for i, output in enumerate(outputs)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that some tokenizers know no words
            expected = pipeline.postprocess(chunks, AggregationStrategy(aggregation), list(ignore))
        subwords = Subwords(bool(model.tokenizer.subword_prefix), model.unknown_id)
        spans = label_spans(text, list(zip(ours, outputs, strict=True)), LABELS, aggregation, ignore, subwords)
        assert [(span.label, span.start, span.end) for span in spans] == [
            (entity.get("entity_group") or entity["entity"], entity["start"], entity["end"]) for entity in expected
        ]
        np.testing.assert_allclose([s.score for s in spans], [e["score"] for e in expected], rtol=1e-5)
        found += len(spans)
    assert found > CASES


def expected_answers(
    context: str, encodings: Any, outputs: list[np.ndarray], cls: int, top_k: int, longest: int
) -> tuple[list[tuple[int, int, float]], float]:
    """As QuestionAnsweringPipeline.postprocess of transformers 4.57 says: the search is still in transformers, what is
    made of the spans it finds is written down here.
    """
    answers: dict[str, list[Any]] = {}
    least = 1e6
    for encoding, output in zip(encodings, outputs, strict=True):
        ids = np.array(encoding.ids)
        masked = np.array([sequence != 1 for sequence in encoding.sequence_ids]) & (ids != cls)
        starts, ends, scores, least = select_starts_ends(
            output[None, :, 0], output[None, :, 1], masked[None].astype(int), np.ones_like(ids)[None], least,
            top_k * 2 + 10, True, longest,
        )  # fmt: skip
        for start, end, score in zip(starts, ends, scores, strict=True):
            if score == 0 or start > end:  # what fills up the list where there are fewer spans than it asks for
                continue
            first = encoding.word_to_chars(encoding.token_to_word(start), 1)[0]
            last = encoding.word_to_chars(encoding.token_to_word(end), 1)[1]
            answer = answers.setdefault(context[first:last].lower(), [first, last, 0.0])
            answer[2] += float(score)
    return [tuple(answer) for answer in sorted(answers.values(), key=lambda answer: -answer[2])[:top_k]], least


@pytest.mark.parametrize("windows", [False, True], ids=["whole", "windows"])
def test_answers(tokenizers: Tokenizers, windows: bool):
    model, reference = tokenizers
    rng, numbers = random.Random(3), np.random.default_rng(3)
    assert model.start_id == reference.cls_token_id
    for _ in range(CASES):
        question, context = random_text(rng, 4), random_text(rng, 30)
        top_k, longest = rng.choice((1, 1, 3, 20)), rng.choice((1, 4, 15))
        encoded = model.tokenizer.encode_pair(question, context, spans=True)
        room = encoded.added_before + encoded.added_after
        length, stride = (room + rng.randint(9, 20), rng.randint(0, 8)) if windows else (10_000, 0)
        ours = encoded.windows(length, stride)
        theirs = reference(
            question,
            context,
            truncation="only_second",
            max_length=length,
            stride=stride,
            return_overflowing_tokens=True,
        )
        assert [window.ids for window in ours] == theirs["input_ids"]
        outputs = [random_outputs(numbers, len(window), 2) for window in ours]
        spans, none = answer_spans(
            context, list(zip(ours, outputs, strict=True)), top_k=top_k, max_tokens=longest, start_id=model.start_id
        )
        expected, least = expected_answers(context, theirs.encodings, outputs, model.start_id, top_k, longest)
        assert [(span.start, span.end) for span in spans] == [(start, end) for start, end, _ in expected]
        np.testing.assert_allclose([s.score for s in spans], [score for *_, score in expected], rtol=1e-5)
        assert none == pytest.approx(least, rel=1e-4)
