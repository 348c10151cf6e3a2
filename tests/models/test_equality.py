"""Every architecture computes what transformers computes, alone and in any batch, whole and piece by piece."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from support.forward import Decoding, Ids, Pair, encode, read, relative_error, texts
from tercet.kernels import dispatch

TOLERANCE = 1e-4
SOURCE_LENGTHS = (7, 1, 40, 23, 2)
LENGTHS = (30, 5, 1, 41, 9)

encoders = pytest.mark.parametrize("name", ["bert", "bert-tanh", "t5", "t5-relu"])
decoders = pytest.mark.parametrize("name", ["llama", "llama-tied", "llama-linear", "llama-llama3", "t5", "t5-relu"])
layouts = pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])

Load = Callable[[str], Pair]


def sources(pair: Pair) -> list[Ids] | None:
    return texts(*SOURCE_LENGTHS) if pair.ours.family == "seq2seq" else None


def check_decoded(pair: Pair, hidden: list[torch.Tensor], ids: list[Ids]) -> None:
    """Hidden states and logits of each text, or target, are the reference's of it alone."""
    for row, text, source in zip(hidden, ids, sources(pair) or [None] * len(ids), strict=True):
        expected_hidden, expected_logits = pair.decoded(text, source)
        logits = pair.ours.logits(row)
        assert logits.dtype == torch.float32
        assert relative_error(row, expected_hidden) <= TOLERANCE
        assert relative_error(logits, expected_logits) <= TOLERANCE


@encoders
@layouts
def test_a_ragged_batch_is_encoded_as_each_text_alone(pair: Load, name: str, padded: bool) -> None:
    case = pair(name)
    ids = texts(*SOURCE_LENGTHS)
    for hidden, text in zip(encode(case.ours, ids, padded=padded), ids, strict=True):
        assert relative_error(hidden, case.encoded(text)) <= TOLERANCE


@encoders
def test_a_product_that_ends_in_the_activation_equals_one_before_it(pair: Load, name: str) -> None:
    """What a CPU fuses, the other implementations compute one by one."""
    model, ids = pair(name).ours, texts(*SOURCE_LENGTHS)
    fused = torch.cat(encode(model, ids))
    dispatch.select("reference")
    try:
        assert relative_error(torch.cat(encode(model, ids)), fused) <= TOLERANCE
    finally:
        dispatch.select("auto")


@layouts
def test_token_types_are_embedded(pair: Load, padded: bool) -> None:
    case = pair("bert")
    ids = texts(9, 14, 3)
    types = [[0] * (len(text) // 2) + [1] * (len(text) - len(text) // 2) for text in ids]
    for hidden, text, kinds in zip(encode(case.ours, ids, types, padded=padded), ids, types, strict=True):
        expected = case.reference(torch.tensor([text]), token_type_ids=torch.tensor([kinds])).last_hidden_state[0]
        assert relative_error(hidden, expected) <= TOLERANCE


@decoders
@layouts
def test_a_ragged_batch_is_decoded_as_each_text_alone(pair: Load, name: str, padded: bool) -> None:
    case = pair(name)
    ids = texts(*LENGTHS, seed=1)
    decoding = Decoding(case.ours, len(ids), sources=sources(case), padded=padded)
    check_decoded(case, decoding.read(ids), ids)


@decoders
@layouts
def test_whole_texts_read_without_a_cache_are_the_same(pair: Load, name: str, padded: bool) -> None:
    case = pair(name)
    ids = texts(*LENGTHS, seed=4)
    check_decoded(case, read(case.ours, ids, sources(case), padded=padded), ids)


@decoders
def test_token_by_token_equals_all_at_once(pair: Load, name: str) -> None:
    case = pair(name)
    ids = texts(*[24] * len(LENGTHS), seed=2)
    decoding = Decoding(case.ours, len(ids), sources=sources(case))
    steps = [decoding.read([text[:7] for text in ids])]
    steps += [decoding.read([[text[i]] for text in ids]) for i in range(7, 24)]
    check_decoded(case, [torch.cat(row) for row in zip(*steps, strict=True)], ids)


@decoders
@layouts
def test_chunks_of_any_length_beside_single_tokens_equal_all_at_once(pair: Load, name: str, padded: bool) -> None:
    case = pair(name)
    ids = texts(*LENGTHS, seed=3)
    decoding = Decoding(case.ours, len(ids), sources=sources(case), padded=padded)
    widths = [(13, 1, 1, 20, 2), (1, 3, 0, 20, 6), (16, 1, 0, 1, 1)]
    done = [0] * len(ids)
    steps: list[list[torch.Tensor]] = []
    for step in widths:
        steps.append(decoding.read([text[n : n + width] for text, n, width in zip(ids, done, step, strict=True)]))
        done = [n + width for n, width in zip(done, step, strict=True)]
    assert done == list(LENGTHS)
    check_decoded(case, [torch.cat(row) for row in zip(*steps, strict=True)], ids)
