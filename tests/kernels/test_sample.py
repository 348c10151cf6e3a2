"""Sampling: the kept sets are transformers', the draws follow them, and depend on nothing but their own row."""

from __future__ import annotations

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tercet.kernels import sample
from tercet.kernels.philox import philox, uniform

# Random123's known answers for philox4x32-10: counter, key, result.
KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)

# Scores may be -inf, which numpy, the interpreter's hardware, warns of.
OVERFLOW = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")


def settings(rows: int, **values) -> dict[str, torch.Tensor]:
    """Arguments of `sample` for some rows, each either given or off."""
    default = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0, "sample": 0, "position": 0}
    dtypes = {"top_k": torch.int32, "seed": torch.int64, "sample": torch.int32, "position": torch.int32}
    return {
        name: torch.as_tensor(values.get(name, value)).to(dtypes.get(name, torch.float32)).expand(rows).contiguous()
        for name, value in default.items()
    }


def mixed_settings(rows: int) -> dict[str, torch.Tensor]:
    """Every combination of off and on, a fifth of the rows greedy."""
    on = torch.rand(4, rows) < 0.6
    return settings(
        rows,
        temperature=torch.where(torch.rand(rows) < 0.2, 0, torch.rand(rows) * 2 + 0.1),
        top_k=torch.where(on[0], torch.randint(1, 50, (rows,)), 0),
        top_p=torch.where(on[1], torch.rand(rows), 1),
        min_p=torch.where(on[2], torch.rand(rows) * 0.3, 0),
        seed=torch.randint(-(2**63), 2**63 - 1, (rows,)),
        sample=torch.randint(0, 8, (rows,)),
        position=torch.arange(rows),
    )


def warped(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """The probabilities transformers would draw from."""
    scores = TemperatureLogitsWarper(temperature)(None, logits[None])
    scores = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    scores = TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
    scores = MinPLogitsWarper(min_p)(None, scores) if min_p else scores
    return scores[0].double().softmax(0)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, words):
    result = philox(tuple(torch.tensor(word) for word in key), tuple(torch.tensor(word) for word in counter))
    assert tuple(int(word) for word in result) == words


def test_greedy_takes_the_first_of_the_likeliest(implementation):
    logits = torch.randn(6, 5000)
    logits[:, [4200, 31, 4999]] = 9.0
    logits[5] = -torch.inf
    logits[5, 777] = -3.0
    tokens = sample(logits, **settings(6, temperature=0.0, top_k=5, top_p=0.5))
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [31] * 5 + [777]


WARPERS = (
    {"top_k": 10**6},
    {"top_k": 5},
    {"top_p": 0.6},
    {"top_p": 1e-9},
    {"min_p": 0.2},
    {"temperature": 1.8, "top_k": 40, "top_p": 0.8, "min_p": 0.05},
    {"temperature": 0.7},
)


@pytest.mark.parametrize(
    ("implementation", "warpers"),
    [("cpu", warpers) for warpers in WARPERS] + [("triton", warpers) for warpers in WARPERS[-1:]],
    ids=str,
    indirect=["implementation"],
)
def test_draws_follow_transformers_distribution(implementation, warpers):
    """No draw outside transformers' set, and chi-squared of the draws below its 99.99 % quantile."""
    draws, vocabulary = (100 if implementation == "triton" else 4000), 61
    logits = torch.randn(vocabulary) * 2
    p = warped(logits, **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | warpers)
    given = settings(draws, **warpers, seed=12345, position=torch.arange(draws))
    counts = sample(logits.expand(draws, -1).contiguous(), **given).bincount(minlength=vocabulary).double()
    assert counts[p == 0].sum() == 0
    # Rare tokens are counted together, so that every cell expects a few draws.
    rare = (p > 0) & (p * draws < 5)
    observed = torch.cat((counts[(p > 0) & ~rare], counts[rare].sum()[None]))
    expected = torch.cat((p[(p > 0) & ~rare], p[rare].sum()[None])) * draws
    chi_squared = ((observed - expected) ** 2 / expected.clamp_min(1e-9)).sum()
    freedom = max(len(expected) - 1, 1)
    # Wilson and Hilferty's approximation of the quantile at 3.72 standard deviations.
    assert chi_squared <= freedom * (1 - 2 / (9 * freedom) + 3.72 * (2 / (9 * freedom)) ** 0.5) ** 3


@pytest.mark.parametrize("vocabulary", [7, 1000, 9001])
def test_kept_sets_are_transformers(reference, vocabulary):
    for _ in range(30):
        logits = torch.randn(vocabulary) * 3
        top_k, top_p, min_p = int(torch.randint(1, vocabulary, ())), float(torch.rand(())), float(torch.rand(())) / 5
        kept = reference.kept_tokens(logits, top_k, top_p, min_p)
        assert torch.equal(kept, warped(logits, 1.0, top_k, top_p, min_p) > 0)


def test_equal_draws_whatever_the_implementation(implementation, reference):
    rows = 40 if implementation == "triton" else 400
    logits = torch.randn(rows, 333) * 3
    given = mixed_settings(rows)
    tokens = sample(logits, **given)
    expected = reference.sample(
        logits, **{key: x for key, x in given.items() if key != "sample"}, sample_index=given["sample"]
    )
    assert torch.equal(tokens, expected)


@OVERFLOW
@pytest.mark.parametrize("temperature", [1e-3, 1e-38, 1e-45])
def test_no_temperature_is_too_small(implementation, temperature):
    """Scores of far more than float32 holds: the likeliest token takes all the mass, equals share it."""
    logits = torch.randn(8, 300)
    logits[:, 7] = logits[:, 250] = 9.0
    for warpers in ({}, {"top_k": 40, "top_p": 0.9, "min_p": 0.1}):
        tokens = sample(logits, **settings(8, temperature=temperature, **warpers, position=torch.arange(8)))
        assert set(tokens.tolist()) == {7, 250}


@OVERFLOW
@pytest.mark.parametrize("temperature", [0.0, 1e-38, 1.0])
def test_rows_without_a_distribution_give_no_token(implementation, reference, temperature):
    """NaN, all -inf and +inf give the size of the vocabulary; the other rows of the batch don't notice."""
    logits = torch.randn(5, 1500)
    logits[0, 1400] = torch.nan
    logits[1] = -torch.inf
    logits[2, 3] = torch.inf
    logits[3, 4:] = -torch.inf
    given = settings(5, temperature=temperature, top_k=30, top_p=0.9, position=torch.arange(5))
    tokens = sample(logits, **given)
    assert tokens[:3].tolist() == [1500] * 3
    expected = reference.sample(
        logits, **{key: x for key, x in given.items() if key != "sample"}, sample_index=given["sample"]
    )
    assert torch.equal(tokens, expected)
    assert (tokens[3:] < torch.tensor([4, 1500])).all()


def test_equal_logits_are_kept_in_index_order(implementation, reference):
    """Top-p cuts among equals after the first ones; top-k keeps all that equal the k-th."""
    rows = 40
    logits = torch.randint(0, 3, (rows, 50)).float()
    given = settings(rows, top_p=torch.rand(rows), seed=3, position=torch.arange(rows))
    given["top_k"][::2] = 7
    expected = reference.sample(
        logits, **{key: x for key, x in given.items() if key != "sample"}, sample_index=given["sample"]
    )
    assert torch.equal(sample(logits, **given), expected)


def test_a_row_alone_draws_what_it_draws_in_a_batch(implementation):
    rows = 12
    logits = torch.randn(rows, 700)
    given = mixed_settings(rows)
    together = sample(logits, **given)
    order = torch.randperm(rows)
    shuffled = sample(logits[order].contiguous(), **{key: x[order] for key, x in given.items()})
    assert torch.equal(shuffled, together[order])
    for row in range(rows):
        alone = sample(logits[row : row + 1], **{key: x[row : row + 1] for key, x in given.items()})
        assert int(alone) == int(together[row])


def test_seed_sample_and_position_each_change_the_draw():
    base = torch.arange(1000)
    zero = torch.zeros_like(base)
    draws = [
        uniform(base, zero, zero),
        uniform(zero, base, zero),
        uniform(zero, zero, base),
        uniform(base << 32, zero, zero),
    ]
    for draw in draws:
        assert ((draw >= 0) & (draw < 1)).all()
        assert len(draw.unique()) > 990
        assert abs(float(draw.mean()) - 0.5) < 0.05
    assert len(torch.stack(draws).unique()) > 3900


@pytest.mark.parametrize("implementation", ["cpu"], indirect=True)
def test_likely_sets_larger_than_the_candidates(implementation, reference):
    """The CPU sorts a few candidates first; a flat distribution needs all of the vocabulary."""
    logits = torch.randn(5, 3000) * 0.01
    given = settings(5, top_p=0.9, seed=torch.arange(5))
    tokens = sample(logits, **given)
    assert torch.equal(
        tokens,
        reference.sample(logits, **{k: x for k, x in given.items() if k != "sample"}, sample_index=given["sample"]),
    )
