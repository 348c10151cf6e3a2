"""What beam searches ask of rows, pages, batches and limits, with models whose scores are a hash of all they read."""

import random
import time

import pytest
import torch

from support.engine import Answers, engine_of, generate, null_engine, prompts, request, run
from support.null_model import POISON, VOCAB_SIZE, NullModel
from tercet.server.wire import Embed, Rejected


@pytest.mark.parametrize("family", ["decoder", "seq2seq"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_every_key_is_read_where_it_was_written(family, layout):
    """The null model's scores are a hash of all that a row reads: one key of another beam would change them."""
    texts = prompts(5, 13, seed=5)
    messages = [request(family, key, ids, 9, num_beams=2 + key, n=2) for key, ids in enumerate(texts)]
    alone = {}
    for message in messages:
        alone |= run(null_engine(family, pages=200)[0], message).tokens
    assert len({tuple(tokens) for tokens in alone.values()}) == 2 * len(texts)
    few = 22 if family == "decoder" else 26
    for pages, batch in ((200, 64), (few, 64), (few, 20)):
        engine, _ = null_engine(family, pages=pages, layout=layout, max_batch_tokens=batch, max_rows=20)
        answers = run(engine, *messages)
        assert answers.tokens == alone
        assert (answers.steps[-1].preemptions > 0) == (pages == few)
        assert (answers.total("recomputed_tokens") > 0) == (pages == few)
        assert answers.steps[-1].pages_used == 0


def some_load(rng, seed, family):
    """Searches of any width, samples, greedy texts and readings, in any order."""
    for key in range(12):
        ids, options = prompts(1, 9, seed=100 * seed + key)[0], {"eos_ids": rng.sample(range(VOCAB_SIZE), 9)}
        match rng.randrange(4):
            case 0 | 1:
                count = rng.randint(2, 4)
                yield request(family, key, ids, rng.randint(1, 9), n=count - 1, num_beams=count, **options)
            case 2:
                yield request(family, key, ids, rng.randint(1, 7), n=rng.randint(1, 3), **options)
            case 3:
                yield Embed(id=key, token_ids=ids, pooling="mean", normalize=False)


@pytest.mark.parametrize("seed", range(12))
def test_any_load_ends_within_its_limits(seed):
    """With few rows and few pages, some of it cancelled: none blocks, and each is answered as alone."""
    rng = random.Random(seed)
    family, layout = rng.choice(["decoder", "seq2seq"]), rng.choice(["packed", "padded"])
    rows, pages = rng.randint(4, 7), rng.randint(18, 30)
    engine, _ = null_engine(family, layout=layout, pages=pages, max_rows=rows, max_batch_tokens=rng.randint(9, 20))
    messages = list(some_load(rng, seed, family))
    answers = Answers()
    for message in messages:
        engine.submit(message)
        answers.add(engine.step())
        if message.id % 5 == 4:
            engine.cancel(message.id - 2)
    for step in run(engine).steps:
        answers.add(step)
    assert not answers.rejected
    assert (answers.steps[-1].pages_used, answers.steps[-1].running) == (0, 0)
    assert all(step.running <= rows for step in answers.steps)
    for message in messages:
        alone = run(null_engine(family)[0], message)
        if message.id in (2, 7):  # cancelled
            continue
        assert {key: tokens for key, tokens in answers.tokens.items() if key[0] == message.id} == alone.tokens
        assert {key: reason for key, reason in answers.reasons.items() if key[0] == message.id} == alone.reasons
        assert answers.vectors.get(message.id) == alone.vectors.get(message.id)


def test_beams_share_the_full_pages_of_their_prompt():
    engine, model = null_engine(page_size=4)
    engine.submit(generate(1, range(1, 11), 20, num_beams=3))
    used = [engine.step() for _ in range(5)]
    assert [step.pages_used for step in used] == [2 + 3] * 3 + [2 + 6] * 2  # two are everybody's
    assert [stats.rows for step in used for stats in step.stats] == [1, 3, 3, 3, 3]
    assert [stats.real_tokens for step in used for stats in step.stats] == [10, 3, 3, 3, 3]
    assert [stats.generated_tokens for step in used for stats in step.stats] == [3] * 5
    assert [step.running for step in used] == [3] * 5
    assert model.batches[0].key_rows is None
    assert model.batches[1].key_rows[:, 8:10].tolist() == [[0, 0]] * 3
    engine.cancel(1, 0)  # no beam is a sample yet
    assert engine.step().pages_used == 8
    engine.cancel(1)
    assert engine.step().pages_used == 0
    assert not engine.busy


def test_a_search_waits_for_all_its_rows():
    """A group is admitted whole, and nothing younger overtakes it."""
    engine, _ = null_engine(max_rows=4)
    engine.submit(generate(1, [1, 2], 6, n=2))
    engine.submit(generate(2, [3, 4], 3, num_beams=3))
    engine.submit(generate(3, [5], 2))
    rows = []
    while engine.busy:
        step = engine.step()
        rows.append(max(stats.rows for stats in step.stats))
        assert step.waiting == 0 or step.running <= 2
        assert step.running <= 4
    assert rows[:5] == [2, 2, 2, 2, 2]
    assert max(rows) == 4


def test_deadlines_and_poison_of_searches():
    engine, _ = null_engine()
    engine.submit(generate(1, [1, 2], 50, num_beams=4, deadline=time.monotonic() + 0.05))
    engine.submit(generate(2, [3, POISON], 5, num_beams=2))
    engine.submit(generate(3, [3, 4], 5, num_beams=2))
    engine.step()
    time.sleep(0.06)
    answers = run(engine)
    assert set(answers.rejected) == {1}
    assert set(answers.reasons) == {(3, 0)}
    assert answers.steps[-1].pages_used == 0


def test_a_failing_batch_is_never_split_within_a_search():
    """Five beams are too many at once for this memory, two and a greedy row are not."""
    engine, _ = null_engine(heavy=4)
    answers = run(
        engine,
        generate(1, [1, 2], 5, num_beams=5),
        generate(2, [3, 4], 5, num_beams=3, n=3),
        generate(3, [5], 5),
        generate(4, [6], 5),
    )
    assert answers.rejected == {1: "internal"}
    assert set(answers.reasons) == {(2, 0), (2, 1), (2, 2), (3, 0), (4, 0)}
    wanted = run(null_engine()[0], generate(2, [3, 4], 5, num_beams=3, n=3))
    assert {key: answers.tokens[key] for key in wanted.tokens} == wanted.tokens
    assert answers.steps[-1].pages_used == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_fail_their_search(monkeypatch, value):
    engine, model = null_engine()
    logits = model.logits

    def overflow(hidden):
        scores = logits(hidden)
        if len(scores) == 3:  # the beams'
            scores[1, 7] = value
        return scores

    monkeypatch.setattr(model, "logits", overflow)
    answers = run(engine, generate(1, [1, 2], 5, num_beams=3), generate(2, [3], 5))
    assert answers.rejected == {1: "internal"}
    assert set(answers.reasons) == {(2, 0)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 9}, "num_beams is 9, the model takes 1 to 8"),
        ({"num_beams": 2, "n": 3}, "n is 3"),
        ({"num_beams": 2, "temperature": 0.5}, "temperature"),
        ({"num_beams": 2, "logprobs": True}, "logprobs"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty is nan"),
        ({"num_beams": 2, "length_penalty": -5.1}, "length_penalty"),
        ({"num_beams": 8}, "so many of 64 tokens need 128 pages, there are 64"),
    ],
)
def test_bad_searches_are_refused(options, words):
    engine, model = null_engine(page_size=4)
    engine.submit(generate(1, [1, 2], 100, **options))
    (rejected,) = engine.step().outputs
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "invalid"
    assert words in rejected.message
    assert not model.batches


def test_too_many_ends_of_a_search_are_refused():
    engine = engine_of(NullModel("decoder", target_vocab_size=2000))
    for key, count in enumerate((1024, 1025)):
        engine.submit(generate(key, [1, 2], 5, num_beams=2, eos_ids=range(count)))
    assert run(engine).rejected == {1: "invalid"}
