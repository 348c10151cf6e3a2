"""What was computed is found again, by whom it may be, while it is there and only if it is right."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.engine import DECODER_START, expected, generate, null_engine, prompts, request, run
from support.null_model import POISON
from tercet.server.engine.transfer import Download
from tercet.server.wire import CacheCounts

FAMILIES = ["decoder", "seq2seq"]
LONG = [1 + place % 60 for place in range(30)]  # seven full pages of 4 and two tokens


def read(answers):
    """Tokens that the model has seen."""
    return answers.total("real_tokens")


@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
@pytest.mark.parametrize(
    ("family", "tokens", "cached"),
    [
        ("decoder", 30, 28),
        ("decoder", 28, 24),  # the last token is read again
        ("decoder", 29, 28),
        ("decoder", 4, 0),
        ("decoder", 5, 4),
        ("decoder", 1, 0),
        ("seq2seq", 30, 30),  # all of a source, its unfilled page too
        ("seq2seq", 1, 1),
    ],
)
def test_a_prompt_is_read_once(family, tokens, cached, ahead):
    engine, _ = null_engine(family, ahead=ahead)
    ids = LONG[:tokens]
    first, second = (run(engine, request(family, key, ids, 5)) for key in (1, 2))
    assert first.cached == {}
    assert second.cached == ({2: cached} if cached else {})
    assert first.tokens[1, 0] == second.tokens[2, 0] == expected(family, ids, 5)
    assert read(second) == read(first) - cached
    prompt = tokens + (len(DECODER_START) if family == "seq2seq" else 0)
    assert first.total("prompt_tokens") == second.total("prompt_tokens") == prompt
    assert second.total("recomputed_tokens") == 0
    last = second.steps[-1]
    assert last.cache == CacheCounts(
        **{f"{'prefix' if family == 'decoder' else 'source'}_{kind}": count
           for kind, count in (("queries", 2 * tokens), ("hits", cached))}
    )  # fmt: skip
    assert last.pages_used == 0


def test_a_conversation_goes_on_behind_its_answers():
    """What was generated is found too: each turn reads the last answer's end and what is new."""
    engine, _ = null_engine(max_length=256)
    ids, reads = LONG, []
    for turn in range(4):
        answers = run(engine, generate(turn, ids, 9))
        reads.append(read(answers))
        assert answers.tokens[turn, 0] == expected("decoder", ids, 9)
        ids = ids + answers.tokens[turn, 0] + [3, 2, 1]
    # Of 30, 42, 54 and 66 tokens all but what is behind the last full page of which keys were computed; then 8 steps.
    assert reads == [30 + 8, 42 - 36 + 8, 54 - 48 + 8, 66 - 60 + 8]


def test_beginnings_are_shared_as_far_as_they_are_alike():
    engine, _ = null_engine()
    answers = run(engine, generate(1, LONG, 2))
    for key, ids, cached in ((2, LONG[:14] + [9] * 9, 12), (3, LONG[:3] + [9] * 9, 0), (4, LONG[4:], 0)):
        answers = run(engine, generate(key, ids, 6))
        assert answers.cached.get(key, 0) == cached
        assert answers.tokens[key, 0] == expected("decoder", ids, 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_tenants_find_nothing_of_each_other(family):
    engine, _ = null_engine(family)
    salts = ["", "a", "b", "a ", "aa"]
    for key, salt in enumerate(salts):
        assert run(engine, request(family, key, LONG, 2, salt=salt)).cached == {}
    whole = 28 if family == "decoder" else 30
    for key, salt in enumerate(salts, 10):
        assert run(engine, request(family, key, LONG, 2, salt=salt)).cached == {key: whole}


@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_cache_only_samples_share(family):
    engine, _ = null_engine(family, prefix_cache=False)
    first, second = (run(engine, request(family, key, LONG, 3, n=3)) for key in (1, 2))
    assert first.cached == second.cached == {}
    assert read(first) == read(second) < 2 * len(LONG)
    assert second.steps[-1].cache == CacheCounts()


def test_a_target_depends_on_its_source():
    """Decoders of seq2seq models that start alike have different keys."""
    engine, _ = null_engine("seq2seq")
    start = LONG[:20]
    for key, ids in enumerate([[1, 2, 3], [3, 2, 1]]):
        answers = run(engine, generate(key, ids, 4, decoder_ids=start))
        assert answers.cached == {}
        alone = run(null_engine("seq2seq")[0], generate(key, ids, 4, decoder_ids=start))
        assert answers.tokens == alone.tokens
    assert read(run(engine, generate(5, [3, 2, 1], 4, decoder_ids=start))) == 4 + 3  # 16 tokens of 20, and the source


@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_comes_together_is_read_once(family, ahead):
    """Those that begin alike wait for the first one to be read, and others overtake them."""
    engine, model = null_engine(family, ahead=ahead, max_batch_tokens=40)
    same = [request(family, key, LONG, 3) for key in range(6)]
    answers = run(engine, *same, request(family, 6, [5, 4, 3], 3))
    for key in range(6):
        assert answers.tokens[key, 0] == expected(family, LONG, 3)
    assert len(answers.cached) == 5
    prompts_read = read(answers) - answers.total("generated_tokens") + 7  # each one's first token comes with its prompt
    if family == "decoder":
        assert prompts_read == len(LONG) + 5 * 2 + 3
    else:
        assert prompts_read == len(LONG) + 3 + 7
        assert sum(hasattr(batch, "page_table") is False for batch in model.batches) == 1
    first = model.batches[0].rows.length.tolist()
    assert sorted(first) == [3, 30]


def test_nobody_waits_for_little():
    """A few tokens that prompts have in common are read with each of them, in one batch."""
    engine, model = null_engine(max_rows=8)
    run(engine, *(generate(key, [7, 7, 7, 7, *[key + 1] * 5], 2) for key in range(6)))
    assert len(model.batches[0].rows.length) == 6


def test_who_waits_for_one_that_leaves_reads_itself():
    engine, _ = null_engine(max_batch_tokens=8, max_length=128)
    ids = LONG + LONG
    for key in range(3):
        engine.submit(generate(key, ids, 4))
    for _ in range(3):
        assert engine.step().running == 1
    engine.cancel(0)
    answers = run(engine)
    assert answers.cached == {1: 24, 2: 56}
    assert {answers.tokens[key, 0] == expected("decoder", ids, 4) for key in (1, 2)} == {True}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_takes_no_page_from_who_needs_it(family):
    """A pool just large enough for one sequence serves any number of them; what was used last is kept longest."""
    engine, _ = null_engine(family, pages=16 if family == "decoder" else 32)
    for key, ids in enumerate(prompts(12, 60, seed=5)):
        answers = run(engine, request(family, key, ids, 3))
        assert answers.tokens[key, 0] == expected(family, ids, 3)
        assert all(step.pages_used + step.pages_cached <= 32 for step in answers.steps)
    assert answers.steps[-1].preemptions == 0
    assert answers.steps[-1].cache.evictions > 20
    assert answers.steps[-1].pages_cached > 8


def test_what_was_used_last_is_kept_longest():
    engine, _ = null_engine(pages=24)
    texts = [[key] * 25 for key in range(1, 5)]  # 7 pages each with one more token, of which 6 are kept
    for key in (1, 2, 3):
        run(engine, generate(key, texts[key - 1], 2))
    assert run(engine, generate(10, texts[0], 2)).cached == {10: 24}
    run(engine, generate(11, texts[3], 2))  # takes the second's
    assert run(engine, generate(12, texts[0], 2)).cached == {12: 24}
    assert run(engine, generate(13, texts[1], 2)).cached.get(13, 0) < 24


@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
def test_the_preempted_find_their_own_pages(ahead):
    """Two texts that outgrow the pool: the younger gives up and goes on nearly where it was, once there is room."""
    engine, _ = null_engine(pages=17, ahead=ahead)
    texts = {1: LONG[:20], 2: [9] * 20}
    answers = run(engine, *(generate(key, ids, 30) for key, ids in texts.items()))
    assert answers.steps[-1].preemptions == 1
    for key, ids in texts.items():
        assert answers.tokens[key, 0] == expected("decoder", ids, 30)
    assert 0 < answers.total("recomputed_tokens") < 20  # less than its prompt: without pages found it were over 30
    assert answers.cached == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_failed_batch_leaves_nothing(monkeypatch, family):
    """Pages that a pass has written before it failed are never found."""
    engine, model = null_engine(family)
    kind = "decode" if family == "decoder" else "write_cross"
    good = getattr(model, kind)

    def corrupt(*arguments):
        good(*arguments)
        cache = arguments[-1]
        cache.k[cache.k >= 0] = 77
        raise RuntimeError("a passing fault")

    monkeypatch.setattr(model, kind, corrupt)
    assert run(engine, request(family, 1, LONG, 3)).rejected == {1: "internal"}
    monkeypatch.setattr(model, kind, good)
    answers = run(engine, request(family, 2, LONG, 3))
    assert answers.cached == {}
    assert answers.tokens[2, 0] == expected(family, LONG, 3)


@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
def test_a_pass_that_fails_late_leaves_nothing(monkeypatch, ahead):
    """What is launched is not computed: a device may tell of a fault when its results are waited for."""
    engine, _ = null_engine(ahead=ahead)

    def fault(download):
        raise RuntimeError("a passing fault")

    with monkeypatch.context() as broken:
        broken.setattr(Download, "arrays", fault)
        assert run(engine, generate(1, LONG, 3)).rejected == {1: "internal"}
    answers = run(engine, generate(2, LONG, 3))
    assert answers.cached == {}
    assert answers.tokens[2, 0] == expected("decoder", LONG, 3)


@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
def test_of_a_poisonous_prompt_what_went_well_is_found(ahead):
    engine, _ = null_engine(max_batch_tokens=8, ahead=ahead)
    bad = [*LONG[:13], POISON, *LONG[:10]]
    assert run(engine, generate(1, bad, 3)).rejected == {1: "internal"}
    answers = run(engine, generate(2, LONG, 3))
    assert answers.cached == ({} if ahead else {2: 8})  # ahead it fails before the chunk before it is collected
    assert answers.tokens[2, 0] == expected("decoder", LONG, 3)
    answers = run(engine, generate(3, bad, 3))
    assert (answers.cached, answers.rejected) == ({3: 12}, {3: "internal"})


@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_finite_is_forgotten(monkeypatch, family, ahead):
    """A fault that has left its mark in pages is not found by those that come after."""
    engine, model = null_engine(family, ahead=ahead)
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: torch.full_like(logits(hidden), torch.nan))
    assert run(engine, request(family, 1, LONG, 3)).rejected == {1: "internal"}
    monkeypatch.setattr(model, "logits", logits)
    answers = run(engine, request(family, 2, LONG, 3))
    assert answers.cached == {}
    assert answers.tokens[2, 0] == expected(family, LONG, 3)


def beginnings(seed):
    """Texts that begin alike, in groups."""
    rng = random.Random(seed)
    ids = [token for token in range(40) if token != POISON]
    common = [rng.choices(ids, k=rng.randint(1, 40)) for _ in range(3)]
    return [(rng.choice(common)[: rng.randint(1, 40)] + rng.choices(ids, k=rng.randint(0, 9))) for _ in range(14)]


@settings(max_examples=10, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 1 << 16),
    pages=st.sampled_from([17, 24, 64]),
    ahead=st.booleans(),
    padded=st.booleans(),
    salts=st.booleans(),
    batch=st.sampled_from([12, 64]),
)
def test_tokens_are_those_without_a_cache(family, seed, pages, ahead, padded, salts, batch):
    """Any load in two waves, with samples, draws and beams: greedy ones by the model, all by an engine without one."""
    rng = random.Random(seed)
    room = {"max_rows": 6, "max_length": 64, "max_batch_tokens": max(batch, 64 if family == "seq2seq" else 0)}
    kinds = [{}, {"n": 2}, {"temperature": 1.0, "seed": seed, "n": 2}, {"num_beams": 2}, {"logprobs": True}]
    messages = [
        request(family, key, ids, 9, salt=rng.choice("ab") if salts else "", eos_ids=range(30), **rng.choice(kinds))
        for key, ids in enumerate(beginnings(seed))
    ]
    pages = pages * (2 if family == "seq2seq" else 1)
    engine, _ = null_engine(family, pages=pages, ahead=ahead, layout="padded" if padded else "packed", **room)
    plain, _ = null_engine(family, pages=128, prefix_cache=False, **room)
    for wave in (messages[:7], messages[7:]):
        answers, wanted = run(engine, *wave), run(plain, *wave)
        assert answers.tokens == wanted.tokens
        assert answers.logprobs == wanted.logprobs
        assert answers.total("prompt_tokens") == wanted.total("prompt_tokens")
        assert answers.steps[-1].pages_used == 0
