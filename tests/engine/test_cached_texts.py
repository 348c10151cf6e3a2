"""Real (tiny) models whose pages are found again: tokens and log probabilities as without a cache."""

import numpy as np
import pytest
import torch

from support.checkpoints import VOCAB_SIZE, tiny_llama, tiny_t5
from support.engine import engine_of, generate, run
from tercet.server.models import load_model
from tercet.server.wire import Score

MAKERS = {"decoder": tiny_llama, "seq2seq": tiny_t5}
BASE = [1 + 7 * place % (VOCAB_SIZE - 1) for place in range(37)]
KINDS = {
    "greedy": {},
    "samples": {"temperature": 1.0, "top_k": 40, "seed": 5, "n": 3},
    "beams": {"num_beams": 3, "n": 2, "length_penalty": 0.7},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "processed": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
}


@pytest.fixture(scope="module", params=MAKERS)
def generative(request, tmp_path_factory):
    folder = MAKERS[request.param](tmp_path_factory.mktemp(request.param))
    return request.param, load_model(folder, device=torch.device("cpu"), dtype="float32", max_length=128)


def conversation(family, kind, rank, new_tokens=9):
    """Requests that begin alike, of one kind."""
    start = [0] if family == "seq2seq" else []
    return [
        generate(10 * rank + turn, ids, new_tokens, decoder_ids=start, eos_ids=[7], **KINDS[kind])
        for turn, ids in enumerate([BASE[:30], BASE[:30], BASE, [*BASE[:18], 9, 8], BASE[:1]])
    ]


@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_tokens_of_every_kind_are_those_without_a_cache(generative, layout, ahead):
    family, model = generative
    plain, cached = (
        engine_of(model, pages=96, prefix_cache=on, layout=layout, ahead=ahead, max_rows=7) for on in (False, True)
    )
    hits = 0
    for rank, kind in enumerate(KINDS):
        messages = conversation(family, kind, rank)
        for wave in (messages[:1], messages[1:]):
            wanted, answers = run(plain, *wave), run(cached, *wave)
            assert answers.tokens == wanted.tokens, kind
            assert answers.reasons == wanted.reasons
            for key, told in wanted.logprobs.items():
                found = answers.logprobs[key]
                assert [one.top_ids for one in found] == [one.top_ids for one in told]
                np.testing.assert_allclose([one.logprob for one in found], [one.logprob for one in told], atol=1e-5)
            hits += sum(answers.cached.values())
    counts = cached.step().cache
    assert hits == counts.prefix_hits + counts.source_hits > 300
    assert plain.step().cache.prefix_queries == 0


def test_an_echoed_prompt_is_scored_whole(tmp_path):
    """What a prompt's tokens are likely to be needs all of them: nothing of it comes from the cache."""
    model = load_model(tiny_llama(tmp_path), device=torch.device("cpu"), dtype="float32", max_length=128)
    engine = engine_of(model, pages=96)
    question = Score(id=9, token_ids=BASE)
    wanted = run(engine_of(model, pages=96), question).likely[9]
    run(engine, generate(1, BASE, 3))
    answers = run(engine, question)
    assert answers.likely[9] == wanted
    assert answers.total("real_tokens") == len(BASE)
    assert run(engine, generate(2, BASE, 3)).cached == {2: 36}


def test_beams_find_the_prompt_and_leave_it(generative):
    """The prompt that a search has read is found by a sample, and the other way round; what beams write is theirs."""
    family, model = generative
    engine = engine_of(model, pages=96)
    start = [0] if family == "seq2seq" else []
    found = 36 if family == "decoder" else 37
    first = run(engine, generate(1, BASE, 6, decoder_ids=start, num_beams=3))
    sample = run(engine, generate(2, BASE, 6, decoder_ids=start))
    again = run(engine, generate(3, BASE, 6, decoder_ids=start, num_beams=3))
    assert (first.cached, sample.cached, again.cached) == ({}, {2: found}, {3: found})
    assert again.tokens[3, 0] == first.tokens[1, 0]
    alone = run(engine_of(model, pages=96), generate(2, BASE, 6, decoder_ids=start))
    assert sample.tokens == alone.tokens
