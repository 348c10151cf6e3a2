"""Every decoder and seq2seq model computes what transformers does, whole and piece by piece, alone and in any batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from support.architectures import DECODERS, SEQ2SEQ, cases
from support.forward import Decoding, Ids, Pair, encoder_batch, head_logits, relative_error, states, take, texts
from tercet.server.models import Model, Source

TOLERANCE = 1e-4
SOURCE_LENGTHS = (7, 1, 40, 23, 2)
LENGTHS = (30, 5, 1, 41, 9)
EOS = 1

everything = pytest.mark.parametrize(("name", "head"), cases(DECODERS | SEQ2SEQ))
generative = pytest.mark.parametrize("name", [*DECODERS, *SEQ2SEQ])
layouts = pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])

Load = Callable[..., Pair]


def sources(model: Model) -> list[Ids] | None:
    """What a seq2seq model reads; the reference classifies by the target's token in the place of the source's EOS."""
    if model.family != "seq2seq":
        return None
    if model.spec.head and model.spec.head.task == "classify":
        return [[max(id, EOS + 1) for id in text[:-1]] + [EOS] for text in texts(*LENGTHS)]
    return texts(*SOURCE_LENGTHS)


def check(pair: Pair, found: list[list[torch.Tensor]], ids: list[Ids]) -> None:
    """The last states of each text, or target, and their logits are the reference's of it alone."""
    assert len(found) == len(ids)
    for ours, text, source in zip(found, ids, sources(pair.ours) or [None] * len(ids), strict=True):
        expected = pair.expected(text, source=source)
        for state, wanted in zip(ours, expected.states[-len(ours) :], strict=True):
            assert relative_error(state, wanted) <= TOLERANCE
        if pair.ours.spec.head:
            logits = head_logits(pair.ours, ours[-1])
            assert logits.dtype == torch.float32
            assert relative_error(logits, expected.logits) <= TOLERANCE


@everything
@layouts
def test_every_state_and_the_logits_of_whole_texts(pair: Load, name: str, head: str, padded: bool) -> None:
    """As they are read without a cache."""
    case = pair(name, head)
    model, ids = case.ours, texts(*LENGTHS, seed=4)
    batch, source = encoder_batch(ids, padded=padded), None
    if read := sources(model):
        encoded = encoder_batch(read, padded=padded)
        source = Source(model.encode(encoded), encoded.rows)
    with states(model.transformer.decoder) as found:
        found.append(model.read(batch, source))
    assert len(found) == model.spec.decoder.layers + 1
    check(case, [list(row) for row in zip(*(take(state, batch.rows) for state in found), strict=True)], ids)


@pytest.mark.parametrize(("name", "head"), cases(SEQ2SEQ))
@layouts
def test_every_state_of_sources(pair: Load, name: str, head: str, padded: bool) -> None:
    case = pair(name, head)
    ids = texts(*SOURCE_LENGTHS)
    batch = encoder_batch(ids, padded=padded)
    with states(case.ours.transformer.encoder) as found:
        found.append(case.ours.encode(batch))
    for ours, text in zip(zip(*(take(state, batch.rows) for state in found), strict=True), ids, strict=True):
        for state, wanted in zip(ours, case.encoded(text), strict=True):
            assert relative_error(state, wanted) <= TOLERANCE


@generative
@layouts
def test_a_ragged_batch_is_decoded_as_each_text_alone(pair: Load, name: str, padded: bool) -> None:
    case = pair(name)
    ids = texts(*LENGTHS, seed=1)
    decoding = Decoding(case.ours, len(ids), sources=sources(case.ours), padded=padded)
    check(case, [[row] for row in decoding.read(ids)], ids)


@generative
def test_token_by_token_equals_all_at_once(pair: Load, name: str) -> None:
    case = pair(name)
    ids = texts(*[24] * len(LENGTHS), seed=2)
    decoding = Decoding(case.ours, len(ids), sources=sources(case.ours))
    steps = [decoding.read([text[:7] for text in ids])]
    steps += [decoding.read([[text[i]] for text in ids]) for i in range(7, 24)]
    check(case, [[torch.cat(row)] for row in zip(*steps, strict=True)], ids)


@generative
@layouts
def test_chunks_of_any_length_beside_single_tokens_equal_all_at_once(pair: Load, name: str, padded: bool) -> None:
    case = pair(name)
    ids = texts(*LENGTHS, seed=3)
    decoding = Decoding(case.ours, len(ids), sources=sources(case.ours), padded=padded)
    widths = [(13, 1, 1, 20, 2), (1, 3, 0, 20, 6), (16, 1, 0, 1, 1)]
    done = [0] * len(ids)
    steps: list[list[torch.Tensor]] = []
    for step in widths:
        steps.append(decoding.read([text[n : n + width] for text, n, width in zip(ids, done, step, strict=True)]))
        done = [n + width for n, width in zip(done, step, strict=True)]
    assert done == list(LENGTHS)
    check(case, [[torch.cat(row)] for row in zip(*steps, strict=True)], ids)
