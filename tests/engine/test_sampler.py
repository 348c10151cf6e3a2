"""What happens to logits before a token is drawn, against transformers' processors."""

import pytest
import torch
from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor

from support.engine import generate
from tercet.server.engine.sampler import choose, pack_sampling, unpack_sampling
from tercet.server.engine.sequence import generation_request
from tercet.server.engine.transfer import PackedBuffer

VOCAB_SIZE = 37
PROMPT = [3, 9, 9, 30]
GENERATED = [[], [5, 5, 3], [36]]


def sequences(family="decoder", **options):
    """One request of three samples, each with other generated tokens."""
    start = [1, 2] if family == "seq2seq" else []
    message = generate(0, PROMPT, 9, n=len(GENERATED), decoder_ids=start, **options)
    request = generation_request(message, 0, family, 64)
    for sequence, tokens in zip(request.sequences, GENERATED, strict=True):
        sequence.tokens += tokens
    return request.sequences


def process(rows, logits):
    """The tokens chosen from `logits`, which are changed in place."""
    buffer = PackedBuffer()
    pack_sampling(buffer.put, rows, list(range(len(rows))))
    return choose(logits, unpack_sampling(buffer.upload(torch.device("cpu"))))


def random_logits(rows=3):
    return torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["decoder", "seq2seq"])
@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty(family, penalty):
    logits = random_logits()
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    start = [1, 2] if family == "seq2seq" else PROMPT
    ids = [torch.tensor([start + tokens]) for tokens in GENERATED]
    wanted = [processor(ids[row], logits[row : row + 1].clone()) for row in range(3)]
    process(sequences(family, repetition_penalty=penalty), logits)
    torch.testing.assert_close(logits, torch.cat(wanted))


def test_ends_are_suppressed_before_the_minimum():
    logits = random_logits()
    processor = MinNewTokensLengthLogitsProcessor(len(PROMPT), 2, [4, 7, 30], device="cpu")
    wanted = [
        processor(torch.tensor([PROMPT + tokens]), logits[row : row + 1].clone())
        for row, tokens in enumerate(GENERATED)
    ]
    process(sequences(eos_ids=[30, 7], stop_ids=[4], min_new_tokens=2), logits)
    torch.testing.assert_close(logits, torch.cat(wanted))
    assert logits.isinf().sum() == 6


def test_a_sequence_knows_what_it_has_seen():
    sequence, *_ = sequences()
    assert list(sequence.seen()) == [3, 9, 30]
    for tokens in ([], [9, 4], [36, 4, 3]):
        sequence.tokens += tokens
        assert sorted(sequence.seen()) == sorted(set(sequence.tokens))


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3, "top_p": 0.5}], ids=str)
def test_rows_that_can_not_choose(options):
    """Their token is beyond the vocabulary; what one may not choose is -inf and harms nobody."""
    logits = random_logits(6)
    logits[0, 5], logits[1], logits[2, 8], logits[3] = torch.nan, torch.nan, torch.inf, -torch.inf
    logits[4, :20] = -torch.inf
    chosen = process([*sequences(**options), *sequences(**options)], logits).tolist()
    assert chosen[:4] == [VOCAB_SIZE] * 4
    assert 20 <= chosen[4] < VOCAB_SIZE
    assert 0 <= chosen[5] < VOCAB_SIZE


def test_rows_that_ask_for_nothing_are_untouched():
    """A mixed batch: only the rows with a penalty or a minimum change."""
    logits = random_logits(9)
    before = logits.clone()
    plain, penalized = sequences(eos_ids=[3]), sequences(repetition_penalty=2.0)
    waiting = sequences(eos_ids=[3], min_new_tokens=2)
    chosen = process([*plain, *penalized, *waiting], logits)
    assert torch.equal(logits[:3], before[:3])
    assert (logits[3:6] != before[3:6]).any(dim=1).all()
    assert torch.equal((logits[6:] != before[6:]).sum(dim=1), torch.tensor([1, 0, 1]))
    assert torch.equal(chosen, logits.argmax(dim=1))


def test_parameters_reach_the_kernel():
    """Every row its own: greedy, top_k=1, top_p so small that one token is left, min_p=1, and a free draw."""
    logits = random_logits(1).expand(15, -1).contiguous()
    kinds = [
        {},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 1.0, "min_p": 1.0},
        {"temperature": 50.0, "seed": 2**64 - 1, "top_k": 2**40},
    ]
    rows = [row for kind in kinds for row in sequences(**kind)]
    chosen = process(rows, logits)
    assert (chosen[:12] == logits[0].argmax()).all()
    assert len(set(chosen[12:].tolist())) > 1
