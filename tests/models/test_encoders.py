"""Every encoder, with every head, computes what transformers computes for each text alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from support.architectures import ENCODERS, cases
from support.forward import Ids, Pair, encode, encoder_batch, head_logits, relative_error, states, take, texts
from tercet.kernels import dispatch

TOLERANCE = 1e-4
ORDINARY = 6  # from this id on there is nobody's padding token

Load = Callable[..., Pair]


def ragged(pair: Pair) -> tuple[list[Ids], list[Ids] | None]:
    """Texts up to the longest there may be, and their token types if there are any."""
    types = pair.ours.spec.encoder.token_types
    ids = [[max(token, ORDINARY) for token in text] for text in texts(7, 1, pair.ours.max_length, 23, 2)]
    return ids, [[i * types // len(text) for i in range(len(text))] for text in ids] if types else None


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize(("name", "head"), cases(ENCODERS))
def test_every_state_and_the_logits_of_a_ragged_batch(pair: Load, name: str, head: str, padded: bool) -> None:
    case = pair(name, head)
    ids, types = ragged(case)
    batch = encoder_batch(ids, types, padded=padded)
    with states(case.ours.transformer.encoder) as found:
        found.append(case.ours.encode(batch))
    rows = zip(*(take(state, batch.rows) for state in found), strict=True)
    for ours, text, kinds in zip(rows, ids, types or [None] * len(ids), strict=True):
        expected = case.expected(text, type_ids=kinds)
        assert len(ours) == case.ours.spec.encoder.layers + 1
        for state, wanted in zip(ours, expected.states, strict=True):
            assert relative_error(state, wanted) <= TOLERANCE
        if case.ours.spec.head:
            logits = head_logits(case.ours, ours[-1])
            assert logits.dtype == torch.float32
            assert relative_error(logits, expected.logits) <= TOLERANCE


@pytest.mark.parametrize("name", ["bert", "bert-tanh"])
def test_a_product_that_ends_in_the_activation_equals_one_before_it(pair: Load, name: str) -> None:
    """What a CPU fuses, the other implementations compute one by one."""
    model, ids = pair(name).ours, texts(7, 1, 40, 23, 2)
    fused = torch.cat(encode(model, ids))
    dispatch.select("reference")
    try:
        assert relative_error(torch.cat(encode(model, ids)), fused) <= TOLERANCE
    finally:
        dispatch.select("auto")
