"""Sequences that are read whole, around the null model: every kind, mixed with each other and with generation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from support.engine import DECODER_START, engine_of, expected, null_engine, prompts, request, run
from support.null_model import POISON, VOCAB_SIZE, NullModel, hashed, scores
from tercet.server.wire import Embed, FillMask, Predict, Score

MASKS = SimpleNamespace(task="fill_mask", outputs=VOCAB_SIZE, reads="all", dense=None)


def score(family, key, ids, **options):
    """A `Score` of `ids`; for seq2seq of them as the target of a source."""
    if family == "seq2seq":
        return Score(id=key, token_ids=[9, 8, 7], decoder_ids=[*DECODER_START, *ids], **options)
    return Score(id=key, token_ids=ids, **options)


def logprobs(family, ids):
    """float32 [len(ids) - 1, vocabulary]: what the null model makes of each of `ids` but the first."""
    before = hashed([9, 8, 7]) if family == "seq2seq" else 17
    return torch.stack([scores(hashed(ids[:end], before)).log_softmax(-1) for end in range(1, len(ids))]).numpy()


def check_scored(family, scored, ids, first=1, top=0):
    """That it is what `logprobs` says."""
    ids = [*DECODER_START, *ids] if family == "seq2seq" else ids
    wanted = logprobs(family, ids)[first - 1 :]
    found = scored.logprobs
    given = [row[token] for row, token in zip(wanted, ids[first:], strict=True)]
    np.testing.assert_allclose([token.logprob for token in found], given, atol=1e-5)
    for token, row in zip(found, wanted, strict=True):
        assert token.top_ids == (-row).argsort()[:top].tolist()
        np.testing.assert_allclose(token.top_logprobs, row[token.top_ids], atol=1e-5)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("family", ["decoder", "seq2seq"])
def test_scores_beside_generation(caplog, family, layout):
    """More places than logits fit at once, other counts of likeliest tokens in every row, and one copy a batch."""
    engine, model = null_engine(family, layout=layout, max_rows=5)
    texts = [ids for ids in prompts(20, 30) if len(ids) > 4]
    messages = []
    for key, ids in enumerate(texts):
        messages.append(request(family, key, ids, 6))
        messages.append(score(family, 100 + key, ids, first=1 + key % 3, top_logprobs=key % 4))
    answers = run(engine, *messages)
    for key, ids in enumerate(texts):
        assert answers.tokens[key, 0] == expected(family, ids, 6)
        check_scored(family, answers.likely[100 + key], ids, 1 + key % 3, key % 4)
    assert all(stats.host_to_device_copies == 1 for stats in answers.stats)
    assert all(stats.rows <= 5 and stats.real_tokens <= 2 * 64 for stats in answers.stats)
    assert len(model.batches) > len(answers.stats) or family == "decoder"  # a target is a pass of its own
    assert answers.steps[-1].pages_used == 0
    assert "batch failed" not in caplog.text  # and worked row by row


def test_the_tokens_of_source_and_target_are_counted():
    engine, _ = null_engine("seq2seq")
    (stats,) = run(engine, score("seq2seq", 1, [1, 2]), score("seq2seq", 2, [1, 2, 3, 4])).stats
    assert (stats.phase, stats.rows, stats.real_tokens, stats.padding_tokens) == ("encode", 2, 3 + 3 + 3 + 5, 0)


@pytest.mark.parametrize("family", ["decoder", "seq2seq"])
@pytest.mark.parametrize(("rows", "pages", "running"), [(2, 64, 2), (8, 16, 1)])
def test_readings_overtake_what_waits_for_rows_or_pages(family, rows, pages, running):
    """With all of them taken by generations and more waiting, a text is read in the next step."""
    engine, _ = null_engine(family, max_rows=rows, pages=pages)
    for key in range(5):
        engine.submit(request(family, key, [key] * 40, 20))
    for _ in range(3):
        before = engine.step()
    engine.submit(score(family, 77, [1, 2, 3]))
    step = engine.step()
    assert 77 in [output.id for output in step.outputs]
    assert [stats.phase for stats in step.stats] == ["encode", "decode"]
    assert (step.running, step.waiting) == (before.running, before.waiting) == (running, 5 - running)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("family", ["encoder", "decoder", "seq2seq"])
def test_every_family_embeds(family, layout):
    """The features of every token of a decoder are what its logits are of; a seq2seq model's are its encoder's."""
    engine, _ = null_engine(family, layout=layout)
    texts = prompts(9, 20)
    pooling = ["none", "last", "none"]
    messages = [
        Embed(id=key, token_ids=ids, pooling=pooling[key % 3], normalize=False) for key, ids in enumerate(texts)
    ]
    answers = run(engine, *messages, *(score("decoder", 50 + key, [3, 4]) for key in range(2) if family == "decoder"))
    for key, ids in enumerate(texts):
        if family == "decoder":
            features = [float(hashed(ids[: end + 1])) for end in range(len(ids))]
        else:
            features = [float(token + 1000 * place) for place, token in enumerate(ids)]
        wanted = features[-1:] if pooling[key % 3] == "last" else features
        assert np.frombuffer(answers.vectors[key], "<f4").tolist() == wanted


def test_vectors_are_mapped_then_cut_then_normalised():
    """The features of tokens are not mapped; here a vector is its number three times."""
    model = NullModel("encoder", embedding_size=3)
    engine = engine_of(model)
    rows = [
        Embed(id=0, token_ids=[5, 6], pooling="cls", normalize=False),
        Embed(id=1, token_ids=[5, 6], pooling="cls", normalize=True, dimensions=2),
        Embed(id=2, token_ids=[5, 6], pooling="cls", normalize=False, dimensions=1),
        Embed(id=3, token_ids=[5, 6], pooling="none", normalize=False, dimensions=1),
        Embed(id=4, token_ids=[5, 6], pooling="none", normalize=False, dimensions=2),
    ]
    answers = run(engine, *rows)
    wanted = [[5, 5, 5], [0.5**0.5] * 2, [5], [5, 1006]]
    for key, vector in enumerate(wanted):
        np.testing.assert_allclose(np.frombuffer(answers.vectors[key], "<f4"), vector, rtol=1e-6)
    assert answers.rejected == {4: "invalid"}
    assert len(model.batches) == 1


@pytest.mark.parametrize("max_rows", [3, 8])
def test_masks(max_rows):
    """Places of several texts, candidates given and not, as many as asked for; the null model hashes a float here."""
    engine, _ = null_engine("encoder", head=MASKS, max_rows=max_rows)
    rows = [
        FillMask(id=0, token_ids=[1, 2, 3], positions=[1], top_k=5),
        FillMask(id=1, token_ids=[4, 5, 6, 7], positions=[3, 0], top_k=2, targets=[9, 50, 3]),
        FillMask(id=2, token_ids=[8] * 20, positions=list(range(0, 20, 2)), top_k=1000),
        FillMask(id=3, token_ids=[4], positions=[0], top_k=9, targets=[100, 0]),
    ]
    answers = run(engine, *rows, Embed(id=9, token_ids=[1, 2], pooling="mean", normalize=True))
    assert np.frombuffer(answers.vectors[9], "<f4").tolist() == [1.0]
    for message in rows:
        found = answers.likely[message.id]
        assert len(found.token_ids) == len(message.positions)
        for place, ids, likely in zip(message.positions, found.token_ids, found.logprobs, strict=True):
            wanted = scores(message.token_ids[place] + 1000 * place).log_softmax(-1)
            best = sorted(message.targets or range(VOCAB_SIZE), key=lambda token: -wanted[token])
            assert ids == best[: message.top_k]
            np.testing.assert_allclose(likely, wanted[ids], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", ["classify", "tag", "answer"])
@pytest.mark.parametrize("reads", ["first", "last", "mean", "all"])
def test_heads_read_what_they_are_made_for(monkeypatch, task, reads):
    """Two outputs: what the head was given, and its double."""
    head = SimpleNamespace(task=task, outputs=2, reads=reads, dense=None)
    engine, model = null_engine("encoder", head=head)
    monkeypatch.setattr(model, "logits", lambda hidden: torch.cat([hidden, 2 * hidden], 1))
    lasts = [None, 0, 1, None, 2]
    texts = [[7, 8], [9], [1, 2, 3], [5] * 7, [6, 6, 6]]
    rows = [Predict(id=key, token_ids=ids, last=lasts[key]) for key, ids in enumerate(texts)]
    answers = run(engine, *rows, Embed(id=9, token_ids=[1], pooling="cls", normalize=False))
    for key, ids in enumerate(texts):
        features = [float(token + 1000 * place) for place, token in enumerate(ids)]
        last = features[-1 if lasts[key] is None else lasts[key]]
        given = {"first": features[:1], "last": [last], "mean": [sum(features) / len(features)], "all": features}[reads]
        assert np.frombuffer(answers.vectors[key], "<f4").tolist() == [x for value in given for x in (value, 2 * value)]


@pytest.mark.parametrize("family", ["decoder", "seq2seq"])
def test_poison_among_readings(family):
    engine, _ = null_engine(family)
    readings = [score(family, key, [1, POISON if key == 3 else 2, 3]) for key in range(6)]
    embeds = [Embed(id=10 + key, token_ids=[4, 5], pooling="cls", normalize=False) for key in range(2)]
    answers = run(engine, *readings, *embeds, request(family, 20, [1, 2], 3))
    assert answers.rejected == {3: "internal"}
    assert sorted(answers.likely) == [0, 1, 2, 4, 5]
    assert sorted(answers.vectors) == [10, 11]
    assert answers.tokens[20, 0] == expected(family, [1, 2], 3)
    assert answers.steps[-1].pages_used == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_answered(monkeypatch, value):
    """Nor does it harm the row beside it, whose token is the third: texts to score come first in a batch."""
    engine, model = null_engine()
    monkeypatch.setattr(model, "logits", lambda hidden: torch.full((len(hidden), VOCAB_SIZE), value))
    vector = torch.full((6, 1), value)
    vector[2] = 1
    monkeypatch.setattr(model, "read", lambda batch: vector)
    rows = [Embed(id=key, token_ids=[1], pooling="last", normalize=False) for key in range(4)]
    answers = run(engine, *rows, score("decoder", 7, [1, 2], top_logprobs=1))
    assert sorted(answers.vectors) == [0]
    assert answers.rejected == dict.fromkeys((1, 2, 3, 7), "internal")


ENCODER = {"classify": SimpleNamespace(task="classify", outputs=3, reads="first", dense=None), "fill_mask": MASKS}


@pytest.mark.parametrize(
    ("family", "head", "message", "words"),
    [
        ("encoder", None, Predict(id=1, token_ids=[1]), "encoder does not classify or tag or answer"),
        ("encoder", None, Score(id=1, token_ids=[1, 2]), "encoder does not generate"),
        ("encoder", "fill_mask", Score(id=1, token_ids=[1, 2]), "encoder does not generate"),
        ("encoder", "classify", FillMask(id=1, token_ids=[1], positions=[0], top_k=1), "does not fill_mask"),
        ("decoder", None, Predict(id=1, token_ids=[1]), "decoder does not classify"),
        ("encoder", "classify", Predict(id=1, token_ids=[]), "token_ids has 0"),
        ("encoder", "classify", Predict(id=1, token_ids=[1], decoder_ids=[1]), "decoder_ids are for seq2seq"),
        ("encoder", "classify", Predict(id=1, token_ids=[1, 2], last=2), "last is 2"),
        ("encoder", "classify", Predict(id=1, token_ids=[1], type_ids=[5]), "type_ids must lie in 0..1"),
        ("encoder", "fill_mask", FillMask(id=1, token_ids=[1], positions=[], top_k=1), "positions is empty"),
        ("encoder", "fill_mask", FillMask(id=1, token_ids=[1], positions=[1], top_k=1), "positions must lie in 0..0"),
        ("encoder", "fill_mask", FillMask(id=1, token_ids=[1], positions=[-1], top_k=1), "positions"),
        ("encoder", "fill_mask", FillMask(id=1, token_ids=[1], positions=[0], top_k=0), "top_k is 0"),
        ("encoder", "fill_mask", FillMask(id=1, token_ids=[1], positions=[0], top_k=2000), "top_k is 2000"),
        (
            "encoder",
            "fill_mask",
            FillMask(id=1, token_ids=[1], positions=[0], top_k=1, targets=[VOCAB_SIZE]),
            "targets must",
        ),
        (
            "encoder",
            "fill_mask",
            FillMask(id=1, token_ids=[1] * 60, positions=list(range(60)), top_k=1, targets=[1] * 20_000),
            "targets times positions",
        ),
        ("decoder", None, Score(id=1, token_ids=[1]), "first is 1"),
        ("decoder", None, Score(id=1, token_ids=[1, 2], first=0), "first is 0"),
        ("decoder", None, Score(id=1, token_ids=[1, 2], top_logprobs=-1), "top_logprobs is -1"),
        ("decoder", None, Score(id=1, token_ids=[1] * 41), "1 to 40"),
        ("decoder", None, Embed(id=1, token_ids=[1] * 41, pooling="mean", normalize=True), "1 to 40"),
        ("decoder", None, Embed(id=1, token_ids=[1], pooling="mean", normalize=True, dimensions=2), "dimensions is 2"),
        ("decoder", None, Embed(id=1, token_ids=[1], pooling="mean", normalize=True, dimensions=0), "dimensions is 0"),
        ("seq2seq", None, Score(id=1, token_ids=[1, 2]), "decoder_ids has 0"),
        ("seq2seq", None, Score(id=1, token_ids=[1], decoder_ids=[1, VOCAB_SIZE]), "decoder_ids must lie in"),
        ("seq2seq", None, Score(id=1, token_ids=[], decoder_ids=[1, 2]), "token_ids has 0"),
    ],
)
def test_bad_readings_are_refused(family, head, message, words):
    """`max_batch_tokens` bounds what is read whole, of decoders too."""
    engine, model = null_engine(family, head=ENCODER.get(head), max_batch_tokens=40 if family == "decoder" else 64)
    engine.submit(message)
    (rejected,) = engine.step().outputs
    assert rejected.reason == "invalid"
    assert words in rejected.message
    assert not engine.busy
    assert not model.batches
