"""Padding and its inverse move any dtype and write every token of storage."""

from __future__ import annotations

import pytest
import torch

from tercet.kernels import pad, unpad

LENGTHS = torch.tensor([17, 0, 1, 63], dtype=torch.int32)
START = (LENGTHS.cumsum(0) - LENGTHS).int()
TOKENS = int(LENGTHS.sum())
LONGEST = 65


def numbers(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(0, 2 if dtype == torch.bool else 100, (TOKENS, *shape)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("shape", [(), (7,), (3, 50), (1100,)], ids=str)
@pytest.mark.parametrize("value", [0, 1])
def test_pad_is_the_reference(implementation, reference, dtype, shape, value):
    packed = numbers(dtype, shape)
    padded = pad(packed, START, LENGTHS, longest=LONGEST, value=value)
    assert padded.dtype == dtype
    assert torch.equal(padded, reference.pad(packed, START, LENGTHS, longest=LONGEST, value=value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [(), (3, 50)], ids=str)
def test_unpad_undoes_pad(implementation, dtype, shape):
    packed = numbers(dtype, shape)
    padded = pad(packed, START, LENGTHS, longest=LONGEST, value=9)
    spare = 5
    back = unpad(padded, START, LENGTHS, longest=LONGEST, tokens=TOKENS + spare)
    assert torch.equal(back[:TOKENS], packed)
    assert (back[TOKENS:] == 0).all()


def test_fractional_and_large_values(implementation):
    starts, lengths = torch.tensor([0]), torch.tensor([1])
    assert pad(torch.ones(1), starts, lengths, longest=2, value=-0.5).tolist() == [1.0, -0.5]
    large = 2**40 + 1
    assert pad(torch.ones(1, dtype=torch.int64), starts, lengths, longest=2, value=large).tolist() == [1, large]


def test_no_rows_and_no_tokens(implementation):
    none = torch.zeros(0, dtype=torch.int32)
    assert pad(torch.zeros(0, 4), none, none, longest=3).shape == (0, 4)
    zero = torch.zeros(2, dtype=torch.int32)
    assert (pad(torch.zeros(0, 4), zero, zero, longest=3, value=2) == 2).all()
    assert unpad(torch.zeros(6, 4), zero, zero, longest=3, tokens=0).shape == (0, 4)
