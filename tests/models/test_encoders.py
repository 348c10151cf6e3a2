"""Every encoder, with every head, computes what transformers computes for each text alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from support.architectures import ENCODERS, cases
from support.forward import Pair, encode, encoder_batch, head_logits, relative_error, states, take, texts, token_types
from tercet.kernels import dispatch

TOLERANCE = 1e-4

Load = Callable[..., Pair]


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize(("name", "head"), cases(ENCODERS))
def test_every_state_and_the_logits_of_a_ragged_batch(pair: Load, name: str, head: str, padded: bool) -> None:
    case = pair(name, head)
    ids = texts(7, 1, case.ours.max_length, 23, 2)
    types = token_types(case.ours, ids)
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
