"""How tokens are chosen from logits, and what is told of them."""

import pytest
import torch

from support.engine import generate, sampling_of
from support.reference import processed
from tercet.server.engine.sampler import choices, choose
from tercet.server.engine.sequence import generation_request
from tercet.server.engine.transfer import Download

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
    """The choices made from `logits`, which are changed in place."""
    sampling = sampling_of(rows)
    return choices(Download(choose(logits, sampling).tensors).arrays(), sampling)


def tokens_of(choices):
    return [token for token, _ in choices]


def random_logits(rows=3):
    return torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))


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
    chosen = tokens_of(process([*sequences(**options), *sequences(**options)], logits))
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
    assert tokens_of(chosen) == logits.argmax(dim=1).tolist()


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
    chosen = tokens_of(process(rows, logits))
    assert set(chosen[:12]) == {int(logits[0].argmax())}
    assert len(set(chosen[12:])) > 1


def test_log_probabilities_are_the_models_own():
    """Before penalties, temperature and filters; of the rows that ask, as many likeliest as they ask for."""
    logits = random_logits(12)
    wanted = logits.log_softmax(-1)
    drawn = {"temperature": 2.0, "top_k": 5, "typical_p": 0.9, "seed": 3}
    rows = [
        *sequences(**drawn),
        *sequences(logprobs=True, repetition_penalty=3.0),
        *sequences(logprobs=True, top_logprobs=4, **drawn),
        *sequences(logprobs=True, top_logprobs=100),
    ]
    choices = process(rows, logits)
    assert [logprob for _, logprob in choices[:3]] == [None] * 3
    for row, (token, told) in enumerate(choices[3:], 3):
        assert told.logprob == pytest.approx(wanted[row, token].item(), abs=1e-5)
        count = [0, 4, VOCAB_SIZE][row // 3 - 1]
        assert told.top_ids == wanted[row].argsort(descending=True)[:count].tolist()
        assert told.top_logprobs == pytest.approx(wanted[row, told.top_ids].tolist(), abs=1e-5)
    assert len({bool(token == wanted[row].argmax()) for row, (token, _) in enumerate(choices)}) == 2


def test_log_probabilities_of_rows_that_can_not_choose():
    logits = random_logits(3)
    logits[1] = torch.nan
    assert tokens_of(process(sequences(logprobs=True, top_logprobs=2), logits))[1] == VOCAB_SIZE


CHI_SQUARED = 66.6  # 36 degrees of freedom: exceeded once in a thousand


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "top_k": 20, "min_p": 0.02},
        {"temperature": 1.6, "top_p": 0.8, "presence_penalty": 1.0},
        {"temperature": 1.3, "typical_p": 0.7, "repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(options):
    """By a chi-squared test over 4000 seeds; tokens outside the support are never drawn."""
    draws = 4000
    options = {"temperature": 1.0} | options
    logits = random_logits(1)
    probabilities = processed(logits, PROMPT, GENERATED[1], **options).softmax(-1)[0]
    rows = [sequences(seed=seed, **options)[1] for seed in range(draws)]
    tokens = torch.tensor(tokens_of(process(rows, logits.repeat(draws, 1))))
    counts = torch.bincount(tokens, minlength=VOCAB_SIZE).double()
    expected = probabilities.double() * draws
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < CHI_SQUARED
