"""Pairs of texts as one sequence, cut and in windows, against transformers."""

from itertools import pairwise
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from support import packaged
from support.texts import texts
from tercet.server.text import Cut, Encoded, Tokenizer, load_text_model

TEXTS = texts(300, seed=2)
PAIRS = [*pairwise(TEXTS), ("", ""), ("a", ""), ("", "b c")]
LONG = "A context, naïve [SEP] and 😀 long enough: " + "one two three four five. " * 12


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Tokenizer, PreTrainedTokenizerBase]:
    return load_text_model(packaged.minilm()).tokenizer, AutoTokenizer.from_pretrained(packaged.minilm())


def test_tokens_of_pairs(tokenizers: tuple[Tokenizer, PreTrainedTokenizerBase]) -> None:
    ours, reference = tokenizers
    expected = reference(PAIRS, return_offsets_mapping=True)
    for index, (pair, with_spans, plain) in enumerate(
        zip(PAIRS, ours.encode_pairs(PAIRS, spans=True), ours.encode_pairs(PAIRS), strict=True)
    ):
        assert with_spans.ids == plain.ids == ours.encode_pair(*pair).ids == expected["input_ids"][index], pair
        assert with_spans.type_ids == plain.type_ids == expected["token_type_ids"][index]
        assert with_spans == ours.encode_pair(*pair, spans=True)
        assert list(zip(with_spans.starts, with_spans.ends, strict=True)) == expected["offset_mapping"][index]
        assert with_spans.sequence == expected.sequence_ids(index)
        assert with_spans.words == expected.word_ids(index)
        assert not plain.words


def test_words_and_sequence_of_one_text(tokenizers: tuple[Tokenizer, PreTrainedTokenizerBase]) -> None:
    ours, reference = tokenizers
    expected = reference(TEXTS)
    for index, encoded in enumerate(ours.encode_batch(TEXTS, spans=True)):
        assert encoded.words == expected.word_ids(index)
        assert encoded.sequence == expected.sequence_ids(index)


def assert_windows(made: list[Encoded], expected: dict[str, list[list[int]]], offsets: bool = True) -> None:
    assert [each.ids for each in made] == expected["input_ids"]
    assert [each.type_ids for each in made] == expected["token_type_ids"]
    if offsets:
        spans = [list(zip(each.starts, each.ends, strict=True)) for each in made]
        assert spans == expected["offset_mapping"]


@pytest.mark.parametrize("overlap", [0, 1, 7, 15])
def test_windows(tokenizers: tuple[Tokenizer, PreTrainedTokenizerBase], overlap: int) -> None:
    """Of the second text with the first one in each; or of a text alone."""
    ours, reference = tokenizers
    question = "How long is it?"
    pair, single = ours.encode_pair(question, LONG, spans=True), ours.encode(LONG, spans=True)
    whole = len(pair)
    for length in (24, 31, whole - 1, whole, whole + 1):
        asked = {"max_length": length, "stride": overlap, "return_overflowing_tokens": True}
        expected = reference(question, LONG, truncation="only_second", return_offsets_mapping=True, **asked)
        windows = pair.windows(length, overlap)
        assert_windows(windows, expected)
        assert [each.sequence for each in windows] == [expected.sequence_ids(i) for i in range(len(windows))]
        assert_windows(
            single.windows(length, overlap), reference(LONG, truncation=True, return_offsets_mapping=True, **asked)
        )


def test_the_second_text_is_cut(tokenizers: tuple[Tokenizer, PreTrainedTokenizerBase]) -> None:
    ours, reference = tokenizers
    encoded = ours.encode_pair("How long is it?", LONG)
    for length in range(10, len(encoded) + 2, 7):
        expected = reference("How long is it?", LONG, truncation="only_second", max_length=length)
        assert_windows([encoded.truncated(length)], {key: [value] for key, value in expected.items()}, offsets=False)


@pytest.mark.parametrize(("cut", "truncation"), [("first", "only_first"), ("longest", "longest_first")])
def test_the_first_or_the_longest_text_is_cut(
    tokenizers: tuple[Tokenizer, PreTrainedTokenizerBase], cut: Cut, truncation: str
) -> None:
    ours, reference = tokenizers
    for first, second in ((LONG, "How long is it?"), ("How long is it?", LONG), (LONG, LONG[::-1])):
        encoded = ours.encode_pair(first, second)
        least = len(encoded) - len(ours.encode(first, add_special_tokens=False)) + 1 if cut == "first" else 10
        for length in range(least, len(encoded) + 2, 5):
            expected = reference(first, second, truncation=truncation, max_length=length)
            assert encoded.truncated(length, cut).ids == expected["input_ids"]


def test_what_does_not_fit(tokenizers: tuple[Tokenizer, PreTrainedTokenizerBase]) -> None:
    encoded = tokenizers[0].encode_pair("one two", "three four five six")
    assert (encoded.added_before, len(encoded)) == (4, 9)
    assert len(encoded.truncated(5)) == 5
    for method in (lambda: encoded.truncated(4), lambda: encoded.windows(4, 0)):
        with pytest.raises(ValueError, match="5 tokens that stay don't fit into 4"):
            method()
    with pytest.raises(ValueError, match="windows of 2 tokens can't overlap by 2"):
        encoded.windows(7, 2)


def test_the_mark_of_subwords() -> None:
    path: Path = packaged.smollm2()
    assert load_text_model(packaged.minilm()).tokenizer.subword_prefix == "##"
    assert load_text_model(path).tokenizer.subword_prefix == ""
