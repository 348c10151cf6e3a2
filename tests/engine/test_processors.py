"""What is done to scores, against the processors that transformers itself makes of the same options."""

import random

import pytest
import torch

from support.engine import generate, sampling_of
from support.reference import processed
from tercet.kernels.reference import kept_tokens
from tercet.server.engine import sampler
from tercet.server.engine.processors import pack_processors, process, unpack_processors
from tercet.server.engine.sequence import generation_request
from tercet.server.engine.transfer import PackedBuffer

VOCAB_SIZE = 23  # few enough that n-grams come again
LIMIT = 40
EOS = [3, 8]

OPTIONS = {
    "penalty": {"repetition_penalty": 1.3},
    "reward": {"repetition_penalty": 0.6},
    "counts": {"presence_penalty": 0.4, "frequency_penalty": -0.2},
    "ngrams": {"no_repeat_ngram_size": 2},
    "long ngrams": {"no_repeat_ngram_size": 4},
    "unigrams": {"no_repeat_ngram_size": 1},
    "source": {"encoder_no_repeat_ngram_size": 2},
    "source unigrams": {"encoder_no_repeat_ngram_size": 1},
    "long source ngrams": {"encoder_no_repeat_ngram_size": 3},
    "bias": {"logit_bias": {4: 2.5, 9: -100.0}},
    "words": {"bad_words": [[1], [5, 6], [2, 2, 7], [3], [3, 4], [11, 12, 13, 14, 15, 16]]},
    "minimum": {"min_new_tokens": 3},
    "suppressed": {"suppressed_ids": [0, 5, 22]},
    "first": {"first_suppressed_ids": [7, 1]},
    "bos": {"forced_bos_id": 6},
    "bos, then first": {"forced_bos_id": 6, "first_suppressed_ids": [7, 6]},
    "eos": {"forced_eos_ids": [8, 3]},
    "eos that is suppressed": {"forced_eos_ids": [8], "suppressed_ids": [1], "min_new_tokens": 50},
    "everything": {
        "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 3, "min_new_tokens": 2,
        "logit_bias": {4: -3.0, 12: 3.0}, "bad_words": [[1, 2], [9]], "suppressed_ids": [0], "forced_bos_id": 6,
        "first_suppressed_ids": [5], "forced_eos_ids": [8], "presence_penalty": 0.1, "frequency_penalty": 0.2,
    },
}  # fmt: skip
FILTERS = {
    "temperature": {"temperature": 0.7},
    "top_k": {"temperature": 1.5, "top_k": 6},
    "top_p": {"temperature": 1.3, "top_p": 0.8},
    "min_p": {"temperature": 2.0, "min_p": 0.2},
    "typical": {"typical_p": 0.6},
    "likeliest": {"top_p": 0.0, "typical_p": 0.6},
    "more typical": {"temperature": 1.4, "typical_p": 0.2},
    "all": {"temperature": 1.4, "top_k": 15, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.85},
}


def writing(family, prompt, source, generated, new_tokens=20, **options):
    """A sequence that has got so far."""
    ids, start = (source, prompt) if family == "seq2seq" else (prompt, [])
    message = generate(0, ids, new_tokens, decoder_ids=start, eos_ids=EOS, **options)
    (sequence,) = generation_request(message, 0, family, LIMIT).sequences
    sequence.tokens += generated
    return sequence


def histories(seed, count=40):
    """Prompts of 1 to 6 tokens, sources, and what was generated: nothing to something."""
    rng = random.Random(seed)
    for _ in range(count):
        tokens = rng.sample(range(VOCAB_SIZE), rng.choice([2, 3, 6, VOCAB_SIZE]))
        yield [rng.choices(tokens, k=rng.randint(low, high)) for low, high in ((1, 6), (1, 12), (0, 15))]
    for length in (0, 1, 7, 8, 18, 19):  # up to the limit, from the one token that decoders start from
        yield [[2], rng.choices(range(VOCAB_SIZE), k=9), rng.choices(range(VOCAB_SIZE), k=length)]


def random_scores(rows, *, beams):
    scores = 3 * torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(rows))
    return scores.log_softmax(-1) if beams else scores


@pytest.mark.parametrize("beams", [False, True])
@pytest.mark.parametrize("family", ["decoder", "seq2seq"])
@pytest.mark.parametrize("name", OPTIONS)
def test_processors_are_those_of_transformers(name, family, beams):
    """Every second row asks for nothing and stays what it is."""
    options = dict(OPTIONS[name])
    if family == "decoder":
        options.pop("encoder_no_repeat_ngram_size", None)
    cases = list(histories(len(name)))
    rows = []
    for prompt, source, generated in cases:
        rows += [writing(family, prompt, source, generated, **options), writing(family, prompt, source, generated)]
    scores = random_scores(len(rows), beams=beams)
    before = scores.clone()
    buffer = PackedBuffer()
    pack_processors(buffer.put, rows, "beams_")
    buffer.put("something", [1])
    process(scores, unpack_processors(buffer.upload(torch.device("cpu")), "beams_"))
    assert torch.equal(scores[1::2], before[1::2])
    for index, (prompt, source, generated) in enumerate(cases):
        wanted = processed(
            before[2 * index : 2 * index + 1], prompt, generated, source=source if family == "seq2seq" else (),
            eos=EOS, max_new_tokens=20, **options,
        )  # fmt: skip
        if options and not wanted.isneginf().all():
            torch.testing.assert_close(scores[2 * index].softmax(-1), wanted[0].softmax(-1), atol=1e-5, rtol=0)
            assert torch.equal(scores[2 * index].isneginf(), wanted[0].isneginf())
    assert not options or (scores != before).any()


@pytest.mark.parametrize("name", FILTERS)
def test_what_is_drawn_from_is_what_transformers_draws_from(monkeypatch, name):
    """After processors and filters, the kernel's own of them by its reference; rows of all filters are mixed."""
    rows, wanted = [], []
    cases = list(histories(5))
    before = random_scores(2 * len(cases), beams=False)
    for index, (prompt, _, generated) in enumerate(cases):
        for place, kind in enumerate((name, list(FILTERS)[index % len(FILTERS)])):
            options = {"temperature": 1.0} | FILTERS[kind] | {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
            scores = before[2 * index + place][None]
            rows.append(writing("decoder", prompt, [], generated, **options))
            wanted.append(processed(scores, prompt, generated, eos=EOS, max_new_tokens=20, **options).softmax(-1)[0])
    found = []

    def record(scores, *, temperature, top_k, top_p, min_p, **draws):
        for row, each in enumerate(scores):
            heated = each / temperature[row]
            kept = kept_tokens(heated - heated.max(), int(top_k[row]), float(top_p[row]), float(min_p[row]))
            found.append(heated.masked_fill(~kept, -torch.inf).softmax(-1))
        return torch.zeros(len(scores), dtype=torch.int64)

    monkeypatch.setattr(sampler, "sample", record)
    sampler.choose(before.clone(), sampling_of(rows))
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), atol=1e-5, rtol=0)
    assert name == "temperature" or (torch.stack(wanted) == 0).float().mean() > 0.2


def test_plain_rows_cost_nothing():
    """Neither in the buffer nor on the device."""
    buffer = PackedBuffer()
    pack_processors(buffer.put, [writing("decoder", [1, 2], [], [3])])
    assert not buffer.fields
    scores = random_scores(1, beams=False)
    before = scores.clone()
    process(scores, {})
    assert torch.equal(scores, before)
