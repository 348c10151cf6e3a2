"""The likeliest tokens and their log probabilities, of vocabularies in one chunk, in several and beyond a tile."""

import pytest
import torch

from tercet.kernels import top_logprobs


@pytest.mark.parametrize(
    ("rows", "vocabulary", "k"), [(1, 1, 1), (3, 31, 31), (5, 333, 32), (2, 9001, 32), (2, 70, 40)]
)
def test_the_likeliest(implementation, reference, rows, vocabulary, k, assert_close):
    logits = torch.randn(rows, vocabulary) * 5
    logits[0, : vocabulary // 2] = -torch.inf
    values, ids = top_logprobs(logits, k=k)
    expected, wanted = reference.top_logprobs(logits.double(), k=k)
    assert (values.dtype, ids.dtype) == (torch.float32, torch.int32)
    finite = expected.isfinite()
    assert torch.equal(values.isfinite(), finite)
    assert torch.equal(ids[finite], wanted[finite])
    assert_close(values[finite], expected[finite])


@pytest.mark.parametrize("vocabulary", [50, 5000])
def test_of_equals_the_lower_token_is_first(implementation, vocabulary):
    logits = torch.randint(0, 4, (3, vocabulary)).float()
    values, ids = top_logprobs(logits, k=32)
    assert torch.equal(ids, logits.sort(descending=True, stable=True).indices[:, :32].int())
    torch.testing.assert_close(values, logits.log_softmax(-1).gather(1, ids.long()))


def test_the_best_come_last(implementation):
    """What a program kept first is all replaced."""
    logits = torch.arange(8200.0)[None] / 100
    values, ids = top_logprobs(logits, k=32)
    assert ids.tolist() == [list(range(8199, 8199 - 32, -1))]
    torch.testing.assert_close(values, logits.log_softmax(-1)[:, -32:].flip(1))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy is the interpreter's hardware
def test_rows_without_a_distribution(implementation):
    logits = torch.randn(4, 4200)
    logits[0, 4100], logits[1, 3], logits[2] = torch.nan, torch.inf, -torch.inf
    values = top_logprobs(logits, k=5)[0]
    assert values[:3, 0].isnan().all()
    assert values[3].isfinite().all()


def test_no_more_than_there_are():
    with pytest.raises(ValueError, match="k must be 1 to 7, not 8"):
        top_logprobs(torch.zeros(1, 7), k=8)
