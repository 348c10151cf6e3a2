"""The engine around the null model: outputs, statistics and pages, whatever the mix."""

import time

import numpy as np
import pytest

from support.engine import DECODER_START, Answers, expected, generate, null_engine, prompts, request, run
from support.null_model import VOCAB_SIZE, continuation
from tercet.server.engine.scheduler import Scheduler
from tercet.server.wire import Embed


@pytest.fixture(params=[False, True], ids=["in turn", "ahead"])
def ahead(request):
    """Whether steps are launched before the one before them is collected."""
    return request.param


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("family", ["decoder", "seq2seq"])
@pytest.mark.parametrize("pages", [64, 19])
def test_tokens_are_those_of_each_request_alone(family, layout, pages, ahead):
    """Mixed lengths, chunked prompts; with few pages, also preemption."""
    engine, model = null_engine(family, layout=layout, pages=pages, max_batch_tokens=48, max_rows=7, ahead=ahead)
    all_ids = prompts(24, 36)
    counts = [1 + 5 * key % 27 for key in range(24)]
    answers = run(engine, *(request(family, key, ids, counts[key]) for key, ids in enumerate(all_ids)))
    for key, ids in enumerate(all_ids):
        assert answers.tokens[key, 0] == expected(family, ids, counts[key])
        assert answers.reasons[key, 0] == "length"
    last = answers.steps[-1]
    assert (last.running, last.waiting, last.pages_used) == (0, 0, 0)
    assert (last.preemptions > 0) == (pages == 19)
    assert (answers.total("recomputed_tokens") > 0) == (pages == 19)
    assert answers.total("generated_tokens") == sum(counts)
    assert answers.total("prompt_tokens") == sum(map(len, all_ids)) + (
        24 * len(DECODER_START) if family == "seq2seq" else 0
    )
    assert all(stats.rows <= 7 and stats.real_tokens + stats.padding_tokens <= 48 for stats in answers.stats)
    assert all(stats.host_to_device_copies == 1 for stats in answers.stats)
    assert len(answers.stats) == len(model.batches)
    assert (answers.total("padding_tokens") > 0) == (layout == "padded")


def test_what_the_host_knows_arrives_in_one_buffer():
    """Every tensor that the device neither computes nor knows already is a view of the one buffer copied there."""
    engine, model = null_engine("seq2seq")
    run(engine, *(request("seq2seq", key, ids, 3) for key, ids in enumerate(prompts(5, 20))))
    decoding = [batch for batch in model.batches if hasattr(batch, "page_table")]
    for batch in decoding:
        views = (
            batch.token_ids, batch.rows.start, batch.rows.length, batch.kv_length, batch.cross_length,
        )  # fmt: skip
        assert len({view.untyped_storage().data_ptr() for view in views}) == 1
        # Aligned for the kernels' widest loads; pages are those of the rows' lanes.
        assert not any(view.data_ptr() % 16 for view in (*views, batch.page_table, batch.cross_page_table))
    assert len(decoding) > 3


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.5}, {"num_beams": 2}, {"logprobs": True}], ids=str)
def test_the_next_step_is_launched_before_tokens_are_known(options):
    """Unless something on the host reads them: then it waits. The tokens are the same."""
    in_turn, _ = null_engine()
    engine, model = null_engine(ahead=True)
    answers = Answers()
    engine.submit(generate(1, [1, 2], 4, **options))
    answers.add(engine.step())
    assert len(model.batches) == (1 if "repetition_penalty" in options else 2)
    while engine.busy:
        answers.add(engine.step())
    assert len(model.batches) == 4
    assert answers.tokens == run(in_turn, generate(1, [1, 2], 4, **options)).tokens
    assert [stats.generated_tokens for stats in answers.stats] == [options.get("num_beams", 1)] * 4


def test_a_row_that_has_ended_runs_once_more_for_nothing():
    """When it ends by a token, the step after is launched already. What that brings is neither told nor counted."""
    ids = [3, 4, 6]
    last = continuation(ids, 2)[-1]
    engine, model = null_engine(ahead=True)
    answers = run(engine, generate(1, ids, 9, eos_ids=[last]), generate(2, [7], 3))
    assert answers.tokens == {(1, 0): continuation(ids, 2), (2, 0): continuation([7], 3)}
    assert [len(batch.rows.length) for batch in model.batches] == [2, 2, 2]
    assert [stats.generated_tokens for stats in answers.stats] == [2, 2, 1]
    assert answers.steps[-1].pages_used == 0


def test_what_the_host_does_not_know_is_not_preempted(monkeypatch):
    """A row that would lose its pages while its last token is on its way: the engine takes that in first."""
    unknown = []
    preempt = Scheduler._preempt

    def watched(scheduler, sequence):
        unknown.append(sequence.drawn)
        preempt(scheduler, sequence)

    monkeypatch.setattr(Scheduler, "_preempt", watched)
    engine, _ = null_engine(pages=19, max_rows=7, ahead=True)
    run(engine, *(generate(key, ids, 20) for key, ids in enumerate(prompts(12, 20))))
    assert unknown
    assert not any(unknown)


def test_what_is_cancelled_in_flight_is_not_told():
    engine, _ = null_engine(ahead=True, page_size=4)
    engine.submit(generate(1, range(1, 10), 20))
    engine.submit(generate(2, range(1, 4), 4))
    engine.step()
    engine.cancel(1)
    engine.submit(generate(3, range(1, 12), 3))  # in the pages that are free now, while the last step still runs
    answers = run(engine)
    assert set(answers.tokens) == {(2, 0), (3, 0)}
    assert answers.tokens[2, 0] == continuation(range(1, 4), 4)[1:]
    assert answers.tokens[3, 0] == continuation(range(1, 12), 3)
    assert answers.steps[-1].pages_used == 0


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_prefill_and_decode_share_a_forward_pass(layout):
    engine, model = null_engine(layout=layout)
    engine.submit(generate(1, [1, 2, 3], 9))
    engine.step()
    engine.submit(generate(2, [4, 5, 6, 7], 2))
    step = engine.step()
    (stats,) = step.stats
    assert sorted(model.batches[-1].rows.length.tolist()) == [1, 4]
    assert (stats.phase, stats.rows, stats.real_tokens) == ("prefill", 2, 5)
    assert stats.padding_tokens == (3 if layout == "padded" else 0)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_long_prompt_is_read_in_chunks(layout, ahead):
    engine, _ = null_engine(max_batch_tokens=10, max_rows=4, layout=layout, ahead=ahead)
    ids = prompts(1, 1)[0] * 37
    answers = run(engine, generate(1, ids, 4))
    assert answers.tokens[1, 0] == continuation(ids, 4)
    assert [stats.real_tokens for stats in answers.stats] == [10, 10, 10, 7, 1, 1, 1]
    assert answers.total("recomputed_tokens") == 0


@pytest.mark.parametrize("family", ["decoder", "seq2seq"])
def test_samples_read_the_prompt_once(family, ahead):
    engine, model = null_engine(family, ahead=ahead)
    ids = list(range(1, 15))
    answers = run(engine, request(family, 1, ids, 6, n=3))
    for sample in range(3):
        assert answers.tokens[1, sample] == expected(family, ids, 6)
    assert answers.total("prompt_tokens") == len(ids) + (len(DECODER_START) if family == "seq2seq" else 0)
    assert answers.steps[-1].pages_used == 0
    reads = sorted((int(length) for batch in model.batches for length in batch.rows.length), reverse=True)
    # The decoder's other samples read what is left of the prompt after its three full pages.
    assert reads[:4] == ([14, 2, 2, 1] if family == "decoder" else [14, 1, 1, 1])


def test_samples_share_pages():
    engine, _ = null_engine("decoder", page_size=4)
    engine.submit(generate(1, range(1, 18), 3, n=4))
    used = [engine.step().pages_used for _ in range(2)]
    assert used == [5, 5 + 3]  # four full pages are everybody's; each has its own fifth


def test_samples_share_cross_pages():
    engine, _ = null_engine("seq2seq", page_size=4)
    engine.submit(request("seq2seq", 1, range(1, 18), 3, n=4))
    used = [engine.step().pages_used for _ in range(2)]
    assert used == [5 + 1, 5 + 4]


def test_pages_for_samples_beyond_the_pool(ahead):
    """More samples than fit at once: they take turns, and preempt each other."""
    engine, _ = null_engine("seq2seq", pages=9, page_size=4, ahead=ahead)
    ids = list(range(1, 12))
    answers = run(engine, request("seq2seq", 1, ids, 14, n=5), request("seq2seq", 2, ids[:5], 14, n=2))
    for sample in range(5):
        assert answers.tokens[1, sample] == expected("seq2seq", ids, 14)
    assert answers.tokens[2, 1] == expected("seq2seq", ids[:5], 14)
    assert answers.steps[-1].pages_used == 0


def test_finish_reasons_and_limits(ahead):
    ids = [3, 4, 6]
    first, second, third = continuation(ids, 3)
    assert len({first, second, third}) == 3
    engine, _ = null_engine(max_length=8, ahead=ahead)
    answers = run(
        engine,
        generate(1, ids, 9),
        generate(2, ids, 9, eos_ids=[second]),
        generate(3, ids, 9, stop_ids=[third]),
        generate(4, ids, 2),
        generate(5, ids, 9, eos_ids=[first], stop_ids=[first]),
    )
    found = {key: (len(tokens), answers.reasons[key, 0]) for (key, _), tokens in answers.tokens.items()}
    assert found == {1: (5, "length"), 2: (2, "eos"), 3: (3, "stop"), 4: (2, "length"), 5: (1, "eos")}
    assert answers.tokens[2, 0][-1] == second  # the token that ends a sequence is told
    assert answers.total("generated_tokens") == sum(map(len, answers.tokens.values()))
    assert answers.steps[-1].pages_used == 0


def test_ends_wait_for_the_minimum():
    ids = [3, 4, 5]
    first = continuation(ids, 1)
    engine, _ = null_engine()
    answers = run(
        engine,
        generate(1, ids, 9, eos_ids=first, min_new_tokens=3),
        generate(2, ids, 9, stop_ids=first),
        generate(3, ids, 4, eos_ids=range(VOCAB_SIZE - 1), min_new_tokens=3),
    )
    assert first[0] not in answers.tokens[1, 0][:3]
    assert answers.tokens[2, 0] == first
    assert answers.tokens[3, 0][:3] == [VOCAB_SIZE - 1] * 3
    assert len(answers.tokens[3, 0]) == 4


def test_cancel_frees_pages_at_once():
    engine, _ = null_engine(page_size=4)
    engine.submit(generate(1, range(1, 10), 20, n=2))
    engine.submit(generate(2, range(1, 4), 20))
    for _ in range(3):
        before = engine.step()
    assert before.pages_used == 4 + 2  # two full pages are shared, each sample has its own third
    engine.cancel(1, 1)
    engine.cancel(77)
    step = engine.step()
    assert step.pages_used == 5
    assert {(output.id, output.sample) for output in step.answers} == {(1, 0), (2, 0)}
    engine.cancel(1)
    engine.cancel(2)
    step = engine.step()
    assert (step.pages_used, step.running, step.waiting, step.outputs, step.stats) == (0, 0, 0, [], [])
    assert not engine.busy


def test_what_waits_can_be_cancelled():
    engine, _ = null_engine(max_rows=1)
    engine.submit(generate(1, [1], 3))
    engine.submit(generate(2, [1], 3, n=2))
    engine.cancel(2)
    answers = run(engine)
    assert set(answers.tokens) == {(1, 0)}


def test_deadlines():
    engine, model = null_engine(max_rows=2)
    engine.submit(generate(1, [1, 2], 50, deadline=time.monotonic() + 0.05))
    engine.submit(generate(2, [3], 2, n=3, deadline=time.monotonic() - 1))
    engine.submit(generate(3, [4], 2, deadline=time.monotonic() + 60))
    answers = Answers()
    answers.add(engine.step())
    assert answers.rejected == {2: "deadline"}
    assert len(model.batches[0].rows.length) == 2
    time.sleep(0.06)
    answers.add(engine.step())
    assert answers.rejected == {1: "deadline", 2: "deadline"}
    assert answers.reasons == {(3, 0): "length"}
    assert answers.steps[-1].pages_used == 0
    assert len(model.batches) == 2


def test_deadlines_of_the_past_are_forgotten():
    """Requests that end long before their deadlines leave nothing behind."""
    engine, _ = null_engine(max_rows=64)
    for first in range(0, 3000, 60):
        run(engine, *(generate(first + key, [1], 1, deadline=time.monotonic() + 1e6) for key in range(60)))
    assert len(engine._deadlines) < 1500


def test_embeddings():
    """Pooling of mixed kinds in one batch; the null model's hidden state is token + 1000 * position + type / 2."""
    engine, model = null_engine("encoder")
    kinds = ["mean", "cls", "last", "max"]
    messages = [
        Embed(
            id=key,
            token_ids=[7, 8, 9],
            type_ids=[0, 0, 1] if key % 2 else None,
            pooling=kinds[key % 4],
            normalize=False,
        )
        for key in range(8)
    ]
    answers = run(engine, *messages)
    wanted = {"mean": 1008, "cls": 7, "last": 2009, "max": 2009.5}
    for key in range(8):
        assert np.frombuffer(answers.vectors[key], "<f4").tolist() == [wanted[kinds[key % 4]]]
    assert len(model.batches) == 1
    (stats,) = answers.stats
    assert (stats.phase, stats.rows, stats.real_tokens, stats.prompt_tokens) == ("encode", 8, 24, 24)


@pytest.mark.parametrize("family", ["decoder", "seq2seq"])
def test_draws_are_the_same_in_any_batch(family, ahead):
    """Sampled requests alone, among others, with few pages: equal by seed and sample; different seeds differ."""
    options = {"temperature": 1.0, "top_k": 40, "top_p": 0.95, "n": 2}
    ids = prompts(1, 9, seed=3)[0]
    wanted = run(null_engine(family)[0], request(family, 1, ids, 12, seed=2**63 + 5, **options)).tokens
    assert wanted[1, 0] != wanted[1, 1]
    for pages, seed in ((64, 1), (19, 2)):
        engine, _ = null_engine(family, pages=pages, ahead=ahead)
        others = [
            request(family, key, other, 14, seed=key, **options) for key, other in enumerate(prompts(9, 20, seed), 2)
        ]
        answers = run(engine, *others[:4], request(family, 1, ids, 12, seed=2**63 + 5, **options), *others[4:])
        assert {key: answers.tokens[key] for key in wanted} == wanted
        assert (answers.steps[-1].preemptions > 0) == (pages == 19)
    other_seed = run(null_engine(family)[0], request(family, 1, ids, 12, seed=6, **options)).tokens
    assert other_seed != wanted
