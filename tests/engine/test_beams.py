"""Beam search against transformers, alone and among others."""

import itertools
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from support.checkpoints import VOCAB_SIZE, tiny_llama, tiny_t5
from support.engine import engine_of, generate, run
from tercet.server.models import load_model
from tercet.server.wire import Tokens

START = [0]
PAD = 10**6  # fills up what transformers returns, and is no token
NEW_TOKENS = 12
ENDS = list(range(20, 60))
LENGTHS = [1, 3, 4, 7, 8, 13]  # pages have 4 tokens
MAKERS = {"decoder": (tiny_llama, AutoModelForCausalLM), "seq2seq": (tiny_t5, AutoModelForSeq2SeqLM)}
PENALTIES = [-1.0, 0.0, 1.0, 2.0]
EARLY = [False, True, "never"]


def random_ids(length, seed=0):
    rng = random.Random(100 * length + seed)
    return [rng.randrange(4, VOCAB_SIZE) for _ in range(length)]


@pytest.fixture(scope="module", params=MAKERS)
def generative(request, tmp_path_factory):
    """Family, our model and transformers' of one checkpoint."""
    make, auto = MAKERS[request.param]
    folder = make(tmp_path_factory.mktemp(request.param))
    ours = load_model(folder, device=torch.device("cpu"), dtype="float32", max_length=128)
    return request.param, ours, auto.from_pretrained(folder, dtype=torch.float32).eval()


def ask(family, key, ids, *, beams, eos=ENDS, **options):
    options = {"n": beams, "new_tokens": NEW_TOKENS} | options
    start = START if family == "seq2seq" else []
    return generate(
        key, ids, options.pop("new_tokens"), decoder_ids=start, eos_ids=eos, num_beams=beams, **options
    )  # fmt: skip


def reference(family, model, ids, *, beams, eos=ENDS, **options):
    """Tokens and score of each beam that transformers returns."""
    options = {"num_return_sequences": beams, "max_new_tokens": options.pop("new_tokens", NEW_TOKENS)} | options
    output = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False, num_beams=beams,
        eos_token_id=eos or None, pad_token_id=PAD, return_dict_in_generate=True, output_scores=True, **options,
    )  # fmt: skip
    rows = output.sequences[:, len(START) if family == "seq2seq" else len(ids) :].tolist()
    return [[token for token in row if 0 <= token < PAD] for row in rows], output.sequences_scores.tolist()


def beams_of(answers, key):
    """Tokens, scores and reasons of a request's beams, best first."""
    found = [
        output for step in answers.steps for output in step.outputs if isinstance(output, Tokens) and output.id == key
    ]
    assert [output.sample for output in found] == list(range(len(found)))
    return tuple(zip(*((output.token_ids, output.score, output.finish_reason) for output in found), strict=True))


@pytest.mark.parametrize("beams", [2, 3, 4, 5])
def test_beams_are_those_of_transformers(generative, beams):
    """Every rule of ending, lengths that do and don't fill pages; some beams end, others are cut off."""
    family, ours, theirs = generative
    seen, lengths = set(), itertools.cycle(LENGTHS)
    for early, penalty in itertools.product(EARLY, PENALTIES):
        ids = random_ids(next(lengths), beams)
        options = {"beams": beams, "length_penalty": penalty, "early_stopping": early}
        tokens, scores = reference(family, theirs, ids, **options)
        answers = run(engine_of(ours), ask(family, 1, ids, **options))
        found, found_scores, reasons = beams_of(answers, 1)
        assert list(found) == tokens, (ids, options)
        assert found_scores == pytest.approx(scores, rel=1e-4)
        assert answers.steps[-1].pages_used == 0
        seen |= set(reasons)
    assert seen == {"eos", "length"}


def test_rules_of_ending_differ(generative):
    """With ends so likely that each rule stops at another step."""
    family, ours, theirs = generative
    ends = list(range(20, 120))
    found = {early: [] for early in EARLY}
    for length, early in itertools.product((2, 3, 6, 7, 9, 10, 13), EARLY):
        ids = random_ids(length, 2)
        options = {"beams": 2, "eos": ends, "early_stopping": early, "length_penalty": 1.0 + length % 2}
        tokens, _ = reference(family, theirs, ids, **options)
        assert list(beams_of(run(engine_of(ours), ask(family, 1, ids, **options)), 1)[0]) == tokens
        found[early].append(tokens)
    assert found[False] != found[True] != found["never"] != found[False]


# What they are called here and by transformers, made of the best beam without them, so that each changes something.
PROCESSORS = {
    "n-grams": lambda text: ({"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 1}),
    "repetition": lambda text: ({"repetition_penalty": 3.0}, {"repetition_penalty": 3.0}),
    "minimum": lambda text: ({"min_new_tokens": 7, "eos": text[2:4]}, {"min_new_tokens": 7, "eos": text[2:4]}),
    "forced": lambda text: (
        {"forced_bos_id": 30, "forced_eos_ids": [25]},
        {"forced_bos_token_id": 30, "forced_eos_token_id": 25},
    ),
    "bad words": lambda text: ({"bad_words": [text[1:3], text[5:6]]}, {"bad_words_ids": [text[1:3], text[5:6]]}),
    "suppressed": lambda text: (
        {"suppressed_ids": text[3:5], "first_suppressed_ids": text[:1]},
        {"suppress_tokens": text[3:5], "begin_suppress_tokens": text[:1]},
    ),
    "several": lambda text: (
        {"repetition_penalty": 0.8, "no_repeat_ngram_size": 3, "forced_eos_ids": [9], "bad_words": [text[:1]]},
        {"repetition_penalty": 0.8, "no_repeat_ngram_size": 3, "forced_eos_token_id": 9, "bad_words_ids": [text[:1]]},
    ),
}


@pytest.mark.parametrize("processors", PROCESSORS)
def test_processors_change_what_beams_add_up(generative, processors):
    family, ours, theirs = generative
    for length in LENGTHS[:3]:
        ids = random_ids(length, 7)
        plain = run(engine_of(ours), ask(family, 1, ids, beams=4, eos=[])).tokens
        options, called = PROCESSORS[processors](plain[1, 0])
        tokens, scores = reference(family, theirs, ids, beams=4, **{"eos": None} | called)
        answers = run(engine_of(ours), ask(family, 1, ids, beams=4, **{"eos": []} | options))
        found, found_scores, _ = beams_of(answers, 1)
        assert list(found) == tokens, ids
        assert found_scores == pytest.approx(scores, rel=1e-4)
        assert answers.tokens != plain


def test_fewer_answers_than_beams(generative):
    family, ours, theirs = generative
    ids = random_ids(9)
    tokens, _ = reference(family, theirs, ids, beams=4)
    answers = run(engine_of(ours), ask(family, 1, ids, beams=4, n=2))
    assert list(beams_of(answers, 1)[0]) == tokens[:2]
    assert len({tuple(text) for text in tokens}) == 4


EMPTY, LEAST = -1e9, -1e8  # the score of a place where no beam has ended; what could not be chosen scores less


def above(least, texts, scores):
    """Those with a greater score. Which of equal ones transformers tells of is up to how they are sorted."""
    return [text for text, score in zip(texts, scores, strict=True) if score > least]


@pytest.mark.parametrize(("ends", "least", "most"), [([], 0, 0), (ENDS[::2], 1, 3)])
def test_fewer_beams_end_than_are_asked_for(generative, ends, least, most):
    """From some length on a sum of log probabilities times its fifth power is less than the score of an empty place."""
    family, ours, theirs = generative
    ids = random_ids(6)
    for early in EARLY:
        options = {"beams": 4, "eos": list(ends), "length_penalty": -5.0, "early_stopping": early, "new_tokens": 60}
        tokens, scores = reference(family, theirs, ids, **options)
        found, found_scores, _ = beams_of(run(engine_of(ours, pages=200), ask(family, 1, ids, **options)), 1)
        assert found_scores == pytest.approx(scores, rel=1e-4)
        texts = above(EMPTY, tokens, scores)
        assert list(found) == texts + [[]] * (4 - len(texts))
        assert least <= sum(score > LEAST for score in scores) <= most


@pytest.mark.parametrize("beams", [2, 4, 8])
def test_searches_with_nothing_left_to_choose(generative, beams):
    """Of two tokens and an end, none of them twice, five texts can be made."""
    family, ours, theirs = generative
    ids = [token for token in random_ids(9) if token > 12]
    rest = [token for token in range(VOCAB_SIZE) if token not in (10, 11, 12)]
    options = {"beams": beams, "eos": [12], "no_repeat_ngram_size": 1, "early_stopping": "never"}
    tokens, scores = reference(family, theirs, ids, suppress_tokens=rest, **options)
    found, found_scores, _ = beams_of(run(engine_of(ours), ask(family, 1, ids, suppressed_ids=rest, **options)), 1)
    assert above(LEAST, found, found_scores) == above(LEAST, tokens, scores)
    assert above(LEAST, found_scores, found_scores) == pytest.approx(above(LEAST, scores, scores), rel=1e-4)
    assert sum(score > LEAST for score in scores) == min(beams, 5)


@pytest.mark.parametrize(("new_tokens", "page_size"), [(1, 4), (1, 1), (5, 1), (5, 3)])
def test_short_searches_of_prompts_in_chunks(generative, new_tokens, page_size):
    family, ours, theirs = generative
    for length in (1, 3, 8, 13):
        ids = random_ids(length, 3)
        tokens, _ = reference(family, theirs, ids, beams=4, new_tokens=new_tokens)
        engine = engine_of(ours, pages=200, page_size=page_size, max_batch_tokens=16 if family == "seq2seq" else 5)
        answers = run(engine, ask(family, 1, ids, beams=4, new_tokens=new_tokens))
        assert list(beams_of(answers, 1)[0]) == tokens
        assert answers.steps[-1].pages_used == 0


def test_stop_tokens_end_beams_too(generative):
    family, ours, _ = generative
    ids = random_ids(6)
    texts = run(engine_of(ours), ask(family, 1, ids, beams=3, eos=[])).tokens.values()
    ends = sorted({token for text in texts for token in text[3:]})
    by_eos = run(engine_of(ours), ask(family, 1, ids, beams=3, eos=ends))
    by_stop = run(engine_of(ours), ask(family, 1, ids, beams=3, eos=[], stop_ids=ends))
    assert by_stop.tokens == by_eos.tokens
    assert "eos" in by_eos.reasons.values()
    names = {"eos": "stop", "length": "length"}
    assert by_stop.reasons == {key: names[reason] for key, reason in by_eos.reasons.items()}


@pytest.mark.parametrize(
    ("layout", "pages", "ahead"),
    [("packed", 200, True), ("padded", 200, False), ("packed", 24, False), ("padded", 24, True)],
)
def test_beams_among_others(generative, layout, pages, ahead):
    """Greedy and sampled requests and searches of unequal widths in one batch: each as alone. Few pages preempt."""
    family, ours, _ = generative
    start = START if family == "seq2seq" else []
    messages = []
    for key, length in enumerate([11, 4, 17, 8, 1, 22, 6, 12]):
        ids = random_ids(length, key)
        if key % 2:
            drawn = {"temperature": 0.9, "seed": key, "n": 2} if key % 4 == 1 else {}
            messages.append(generate(key, ids, NEW_TOKENS, decoder_ids=start, **drawn))
        else:
            messages.append(ask(family, key, ids, beams=2 + key // 2))
    alone = [run(engine_of(ours), message) for message in messages]
    engine = engine_of(ours, layout=layout, pages=pages, max_batch_tokens=48, max_rows=9, ahead=ahead)
    answers = run(engine, *messages)
    for single in alone:
        for key, tokens in single.tokens.items():
            assert answers.tokens[key] == tokens
            assert answers.reasons[key] == single.reasons[key]
    for key in range(0, 8, 2):
        assert beams_of(answers, key)[1] == pytest.approx(beams_of(alone[key], key)[1], rel=1e-4)
    assert (answers.steps[-1].preemptions > 0) == (pages == 24)
    assert answers.steps[-1].pages_used == 0
    assert all(stats.rows <= 9 and stats.real_tokens + stats.padding_tokens <= 48 for stats in answers.stats)
    assert max(stats.rows for stats in answers.stats) >= 8


def test_no_step_of_a_search_waits_for_the_one_before(generative):
    """A search that ends before its limit is over one pass before the host knows it."""
    family, ours, _ = generative
    ids = random_ids(9, 4)
    search = ask(family, 1, ids, beams=3, eos=list(range(9, 150)), early_stopping=True)
    in_turn, ahead = (run(engine_of(ours, ahead=ahead), search) for ahead in (False, True))
    assert ahead.tokens == in_turn.tokens
    assert beams_of(ahead, 1)[1] == beams_of(in_turn, 1)[1]
    assert len(ahead.stats) == len(in_turn.stats) + 1
    assert ahead.steps[-1].pages_used == 0
