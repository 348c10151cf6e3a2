"""A head's product and the best of its logits: the same as all logits sorted, whatever the sizes."""

from __future__ import annotations

import pytest
import torch

from tercet.kernels import head_topk, sample
from tercet.kernels.configurations import head_tile

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small whole numbers: their products are exact in every order, and many are equal."""
    return torch.randint(-3, 4, shape).to(dtype)


# Rows, vocabulary, dimensions, k: around tiles of 16 to 128 rows and 64 or 128 tokens.
@DTYPES
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(
    "size",
    [
        (1, 1, 1, 1),
        (3, 257, 33, 1),
        (17, 64, 7, 1),
        (130, 300, 20, 1),
        (1, 129, 16, 128),
        (3, 70, 33, 64),
        (17, 300, 7, 5),
    ],
    ids=str,
)
def test_the_best_logits_and_their_ids(implementation, reference, size, bias, dtype):
    """Bit for bit, equal logits by their ids, in half precision after rounding."""
    rows, vocabulary, width, k = size
    hidden, weight = integers(rows, width, dtype=dtype), integers(vocabulary, width, dtype=dtype)
    offset = integers(vocabulary, dtype=dtype) * 1025.5 if bias else None  # beyond whole numbers' range in float16
    values, ids = head_topk(hidden, weight, k=k, bias=offset)
    expected, expected_ids = reference.head_topk(hidden, weight, k=k, bias=offset)
    assert (values.dtype, ids.dtype) == (torch.float32, torch.int32)
    assert torch.equal(values, expected)
    assert torch.equal(ids, expected_ids)


@DTYPES
@pytest.mark.parametrize("implementation", ["triton"], indirect=True)
def test_lists_of_many_tiles_and_merges_of_merges(implementation, reference, monkeypatch, dtype):
    """As a large vocabulary has them: several tiles a program, an odd number of lists, merged in several launches."""
    from tercet.kernels.jit import head_topk as module

    monkeypatch.setattr(module, "MAX_LISTS", 5)
    monkeypatch.setattr(module, "MERGED", 2)
    monkeypatch.setattr(module, "SINGLES", 4)
    hidden, weight = integers(3, 9, dtype=dtype), integers(8 * 128 + 3, 9, dtype=dtype)
    for k in (1, 100):
        values, ids = head_topk(hidden, weight, k=k)
        expected, expected_ids = reference.head_topk(hidden, weight, k=k, bias=None)
        assert torch.equal(values, expected)
        assert torch.equal(ids, expected_ids)


@pytest.mark.parametrize("k", [1, 40])
def test_rows_without_a_distribution_are_known_by_their_first_logit(implementation, k):
    """NaN of either sign, +inf and all -inf; their neighbours don't notice, and -0 equals 0."""
    weight = torch.zeros(200, 4)
    weight[[7, 190], 0] = torch.tensor([torch.nan, -torch.nan])
    weight[150, 1] = torch.inf
    weight[:, 2] = -torch.inf
    weight[:, 3] = torch.where(torch.arange(200) < 100, -0.0, 0.0)
    values = torch.cat(
        [head_topk(torch.ones(1, 1), weight[:, column : column + 1].contiguous(), k=k)[0] for column in range(4)]
    )
    ids = head_topk(torch.ones(2, 1), weight[:, 3:].contiguous(), k=k)[1]
    assert values.isfinite()[:, 0].tolist() == [False, False, False, True]
    assert ids.tolist() == [list(range(k))] * 2
    assert values[2, 0] == -torch.inf


@DTYPES
@pytest.mark.parametrize("k", [1, 8])
def test_they_are_the_logits_of_the_head(implementation, assert_close, dtype, k):
    """Real numbers: the likeliest are those of the product, and greedy tokens those of `sample`."""
    hidden, weight, bias = torch.randn(5, 96).to(dtype), torch.randn(777, 96).to(dtype), torch.randn(777).to(dtype)
    logits = torch.nn.functional.linear(hidden.double(), weight.double(), bias.double())
    values, ids = head_topk(hidden, weight, k=k, bias=bias)
    assert_close(values, logits.gather(1, ids.long()), dtype)
    assert_close(values, logits.topk(k).values, dtype)
    zeros, ints = torch.zeros(5), torch.zeros(5, dtype=torch.int32)
    settings = {
        "top_k": ints,
        "top_p": zeros + 1,
        "min_p": zeros,
        "seed": ints.long(),
        "sample": ints,
        "position": ints,
    }
    greedy = sample(logits.to(dtype).float(), temperature=zeros, **settings)
    assert torch.equal(ids[:, 0].long(), greedy)


def test_what_cannot_be_is_refused():
    hidden, weight = torch.randn(2, 8), torch.randn(300, 8)
    for k in (0, 129):
        with pytest.raises(ValueError, match=f"k must be 1 to 128, not {k}"):
            head_topk(hidden, weight, k=k)
    with pytest.raises(ValueError, match="k must be 1 to 3, not 4"):
        head_topk(hidden, weight[:3], k=4)
    for wrong in ({"weight": weight[:, :7]}, {"weight": weight, "bias": torch.zeros(299)}):
        with pytest.raises(ValueError, match="don't fit together"):
            head_topk(hidden, k=1, **wrong)


def test_no_rows(implementation):
    values, ids = head_topk(torch.empty(0, 8), torch.randn(300, 8), k=5)
    assert (values.shape, ids.shape) == ((0, 5), (0, 5))


def test_weights_are_read_once_up_to_128_rows():
    for rows in (1, 16, 17, 128):
        assert head_tile(torch.bfloat16, rows, greedy=True).block_n >= rows
    assert head_tile(torch.bfloat16, 256, greedy=True).block_n == 128
