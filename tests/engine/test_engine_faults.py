"""What goes wrong with one request stays with it: poison, memory, bad input, logits that are not finite."""

import pytest
import torch

from support.engine import expected, generate, null_engine, prompts, request, run
from support.null_model import POISON, VOCAB_SIZE, continuation
from tercet.server.engine.transfer import Download
from tercet.server.wire import Embed, FillMask, Rejected


@pytest.mark.parametrize("family", ["decoder", "seq2seq"])
@pytest.mark.parametrize("ahead", [False, True])
def test_poison_fails_alone(family, ahead):
    engine, _ = null_engine(family, ahead=ahead)
    all_ids = prompts(8, 6)
    all_ids[3] = [1, POISON, 2]
    answers = run(engine, *(request(family, key, ids, 5) for key, ids in enumerate(all_ids)))
    assert answers.rejected == {3: "internal"}
    for key, ids in enumerate(all_ids):
        assert (key == 3) or answers.tokens[key, 0] == expected(family, ids, 5)
    assert answers.steps[-1].pages_used == 0
    again = run(engine, request(family, 50, [1, 2], 3))
    assert again.tokens[50, 0] == expected(family, [1, 2], 3)


def test_a_request_is_rejected_once(monkeypatch):
    """Two samples in one batch: when one fails alone, nothing more is said for the other."""
    engine, model = null_engine()
    engine.submit(generate(1, [1, 2], 9, n=2))
    engine.step()
    engine.step()
    decode, failures = model.decode, [1, 1]

    def flaky(batch, cache):
        if failures:
            failures.pop()
            raise RuntimeError("a passing fault")
        return decode(batch, cache)

    monkeypatch.setattr(model, "decode", flaky)
    step = engine.step()
    assert [type(output) for output in step.outputs] == [Rejected]
    assert (step.pages_used, step.stats, engine.busy) == (0, [], False)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("ahead", [False, True])
def test_logits_that_are_not_finite_fail_their_request(monkeypatch, value, temperature, ahead):
    """A draw from them is no token: it is neither sent nor read by the next step, being beyond the table."""
    engine, model = null_engine(ahead=ahead)
    logits = model.logits

    def overflow(hidden):
        scores = logits(hidden)
        scores[1:3, 7] = value
        return scores

    engine.submit(generate(1, [1, 2], 5))
    engine.submit(generate(2, [3, 4], 5, temperature=temperature, n=2))
    for _ in range(2):
        engine.step()
    monkeypatch.setattr(model, "logits", overflow)
    answers = run(engine)
    assert answers.rejected == {2: "internal"}
    assert set(answers.reasons) == {(1, 0)}
    told = [output for step in answers.steps[ahead:] for output in step.answers]  # the first may be of a step before
    assert {output.id for output in told if not isinstance(output, Rejected)} == {1}


def test_a_lost_device_is_nobodys_fault(monkeypatch):
    """No request is rejected for it: the error ends the process, and the supervisor starts another."""
    engine, model = null_engine()

    def lose(batch, cache):
        raise torch.AcceleratorError("an illegal memory access")

    monkeypatch.setattr(model, "decode", lose)
    engine.submit(generate(1, [1, 2], 9))
    with pytest.raises(torch.AcceleratorError):
        engine.step()


@pytest.mark.parametrize("error", [RuntimeError, torch.AcceleratorError])
def test_what_fails_on_its_way_to_the_host(monkeypatch, error):
    """Its requests are rejected; a lost device ends the process, whenever that shows."""
    engine, _ = null_engine(ahead=True)

    def lose(download):
        raise error("an illegal memory access")

    engine.submit(generate(1, [1, 2], 9))
    engine.step()
    with monkeypatch.context() as patched:
        patched.setattr(Download, "arrays", lose)
        if error is torch.AcceleratorError:
            with pytest.raises(error):
                engine.step()
            return
        assert run(engine).rejected == {1: "internal"}
    assert run(engine, generate(2, [3], 2)).tokens[2, 0] == continuation([3], 2)


def test_poison_among_embeddings():
    engine, _ = null_engine("encoder")
    messages = [
        Embed(id=key, token_ids=[key, POISON if key == 2 else 1], pooling="mean", normalize=False) for key in range(6)
    ]
    answers = run(engine, *messages)
    assert answers.rejected == {2: "internal"}
    assert sorted(answers.vectors) == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("heavy", [3, 1])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_batch_too_large_for_memory_runs_in_halves(heavy, ahead):
    engine, _ = null_engine(heavy=heavy, ahead=ahead)
    all_ids = prompts(5, 6)
    answers = run(engine, *(generate(key, ids, 4) for key, ids in enumerate(all_ids)))
    if heavy == 1:
        assert answers.rejected == dict.fromkeys(range(5), "internal")
    else:
        assert not answers.rejected
        assert [answers.tokens[key, 0] for key in range(5)] == [continuation(ids, 4) for ids in all_ids]
    assert answers.steps[-1].pages_used == 0


@pytest.mark.parametrize(
    ("message", "reason", "words"),
    [
        (generate(1, [], 3), "invalid", "token_ids has 0"),
        (generate(1, [1] * 64, 3), "invalid", "1 to 63"),
        (generate(1, [VOCAB_SIZE], 3), "invalid", f"0..{VOCAB_SIZE - 1}"),
        (generate(1, [-1], 3), "invalid", "token_ids"),
        (generate(1, [(1 << 31) - 1], 3), "invalid", "token_ids"),
        (generate(1, [1], 0), "invalid", "max_new_tokens"),
        (generate(1, [1], 1, n=0), "invalid", "n is 0"),
        (generate(1, [1], 1, seed=1 << 64), "invalid", "seed"),
        (generate(1, [1], 1, temperature=-1.0), "invalid", "temperature"),
        (generate(1, [1], 1, temperature=float("nan")), "invalid", "temperature is nan"),
        (generate(1, [1], 1, temperature=float("inf")), "invalid", "temperature is inf"),
        (generate(1, [1], 1, top_p=1.5), "invalid", "top_p is 1.5"),
        (generate(1, [1], 1, min_p=-0.1), "invalid", "min_p is -0.1"),
        (generate(1, [1], 1, typical_p=0.0), "invalid", "typical_p is 0.0"),
        (generate(1, [1], 1, repetition_penalty=0.0), "invalid", "repetition_penalty is 0.0"),
        (generate(1, [1], 1, presence_penalty=float("nan")), "invalid", "presence_penalty is nan"),
        (generate(1, [1], 1, frequency_penalty=float("inf")), "invalid", "frequency_penalty is inf"),
        (generate(1, [1], 1, no_repeat_ngram_size=-1), "invalid", "no_repeat_ngram_size is -1"),
        (generate(1, [1], 1, top_logprobs=1025), "invalid", "top_logprobs is 1025"),
        (generate(1, [1], 1, logit_bias={VOCAB_SIZE: 1.0}), "invalid", "logit_bias must lie"),
        (generate(1, [1], 1, logit_bias={1: float("nan")}), "invalid", "logit_bias is nan"),
        (generate(1, [1], 1, bad_words=[[1], []]), "invalid", "bad_words has an empty"),
        (generate(1, [1], 1, bad_words=[[1], [1, -1]]), "invalid", "bad_words must lie"),
        (generate(1, [1], 1, suppressed_ids=[VOCAB_SIZE]), "invalid", "suppressed_ids must lie"),
        (generate(1, [1], 1, first_suppressed_ids=[-1]), "invalid", "first_suppressed_ids must lie"),
        (generate(1, [1], 1, forced_bos_id=VOCAB_SIZE), "invalid", "forced_bos_id must lie"),
        (generate(1, [1], 1, forced_eos_ids=[1, VOCAB_SIZE]), "invalid", "forced_eos_ids must lie"),
        (generate(1, [1], 1, eos_ids=[VOCAB_SIZE]), "invalid", "eos_ids"),
        (generate(1, [1], 1, stop_ids=[-1]), "invalid", "stop_ids"),
        (FillMask(id=1, token_ids=[1], positions=[0], top_k=1), "invalid", "decoder"),
    ],
)
def test_bad_requests_are_refused(message, reason, words):
    engine, model = null_engine()
    (rejected,) = (engine.submit(message), engine.step())[1].outputs
    assert rejected.reason == reason
    assert words in rejected.message
    assert not engine.busy
    assert not model.batches
    assert run(engine, generate(2, [1], 2)).tokens[2, 0] == continuation([1], 2)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Embed(id=1, token_ids=[1, 2], type_ids=[0], pooling="mean", normalize=False), "type_ids has 1"),
        (Embed(id=1, token_ids=[1, 2], type_ids=[0, 2], pooling="mean", normalize=False), "type_ids must lie in 0..1"),
        (Embed(id=1, token_ids=[1] * 65, pooling="mean", normalize=False), "1 to 64"),
        (generate(1, [1], 3), "encoder"),
    ],
)
def test_bad_embeddings_are_refused(message, words):
    engine, _ = null_engine("encoder", max_length=512, max_batch_tokens=64)
    engine.submit(message)
    (rejected,) = engine.step().outputs
    assert rejected.reason == "invalid"
    assert words in rejected.message
