"""Replayed steps of beams give what launched ones give, whatever the mix, and nothing of a batch is baked into them."""

import random
from functools import partial

import pytest
import torch

from support.checkpoints import VOCAB_SIZE, tiny_llama, tiny_t5
from support.device import DEVICE, ON_GPU
from support.engine import Answers, engine_of, generate, run
from support.graphs import EmulatedGraphs, backend, recorded
from tercet.kernels import dispatch
from tercet.server.engine import decode_steps, tuning
from tercet.server.engine.beam_tables import BeamTables
from tercet.server.engine.decode_steps import Bucket, DecodeSteps
from tercet.server.engine.graphs import Graphs
from tercet.server.engine.lanes import Lanes
from tercet.server.models import load_model
from tercet.server.wire import Tokens

pytestmark = pytest.mark.usefixtures("triton_kernels")

MAKERS = {
    "decoder": partial(tiny_llama, num_hidden_layers=1),
    "seq2seq": partial(tiny_t5, num_layers=1, num_decoder_layers=1, num_heads=1),
}


@pytest.fixture(autouse=True)
def _buckets(monkeypatch):
    """One of decode steps, and few and small ones of the encoder: the interpreter is slow."""
    monkeypatch.setattr(tuning, "DECODE_ROWS", (512,))
    monkeypatch.setattr(tuning, "ENCODER_TOKENS", (8,))
    monkeypatch.setattr(tuning, "ENCODER_TEXTS", (1,))


@pytest.fixture(scope="module", params=MAKERS)
def model(request, tmp_path_factory):
    folder = MAKERS[request.param](tmp_path_factory.mktemp(request.param))
    return load_model(folder, device=torch.device(DEVICE), dtype="float32", max_length=64)


def ask(model, key, length, new_tokens, **options):
    ids = random.Random(key).choices(range(4, VOCAB_SIZE), k=length)
    return generate(key, ids, new_tokens, decoder_ids=[0] if model.family == "seq2seq" else [], **options)


def search(model, key, length, new_tokens, beams, **options):
    return ask(model, key, length, new_tokens, num_beams=beams, n=beams, **options)


def scores_of(answers):
    """Of beams, by request and rank."""
    outputs = (output for step in answers.steps for output in step.outputs if isinstance(output, Tokens))
    return {(output.id, output.sample): output.score for output in outputs if output.score is not None}


def launched(model, *messages):
    """Tokens and scores of each message alone, of an engine without graphs and with the kernels of a CPU."""
    selected, tokens, scores = dispatch._selected, {}, {}
    dispatch.select("auto")
    for message in messages:
        answers = run(engine_of(model, max_rows=9), message)
        tokens |= answers.tokens
        scores |= scores_of(answers)
    dispatch._selected = selected
    return tokens, scores


@pytest.fixture
def continued(monkeypatch):
    """The rows of the graphs that continued beams."""
    found, replay = [], DecodeSteps.continue_beams

    def counted(steps, rows):
        found.append(rows)
        return replay(steps, rows)

    monkeypatch.setattr(DecodeSteps, "continue_beams", counted)
    return found


def test_searches_go_on_as_in_launched_steps(model, continued):
    """Of two, three and four beams, of unequal lengths, one over early, one before its last token of the prompt."""
    ends = list(range(4, 120))
    messages = [
        search(model, 1, 3, 6, 3, length_penalty=0.5),
        search(model, 2, 7, 5, 2, eos_ids=ends[:15], early_stopping=True),
        search(model, 3, 5, 7, 4, eos_ids=ends[:3], stop_ids=ends[3:7], early_stopping="never", length_penalty=2.0),
    ]
    tokens, scores = launched(model, *messages)
    engine = engine_of(model, max_rows=9, ahead=True, backend=backend())
    answers = run(engine, *messages)
    assert answers.tokens == tokens
    assert scores_of(answers) == pytest.approx(scores, rel=1e-4)
    assert len({len(text) for text in tokens.values()}) > 2
    assert answers.steps[-1].pages_used == 0
    steps = [stats for stats in answers.stats if stats.phase != "encode"]
    assert [stats.replayed_steps for stats in steps] == [model.family == "seq2seq"] + [1] * (len(steps) - 1)
    assert len(continued) == sum(stats.replayed_steps for stats in steps)


def test_beams_among_others(model, continued, monkeypatch):
    """Rows that draw, a search with more beams than a graph has room for, one whose scores are changed, one that is
    given up; few pages preempt.
    """
    monkeypatch.setattr(decode_steps, "BEAMS", 3)
    messages = [
        search(model, 1, 3, 6, 3, length_penalty=2.0),
        ask(model, 2, 5, 5, temperature=1.0, top_k=20, seed=7),
        search(model, 3, 3, 3, 4, eos_ids=[9]),
        search(model, 4, 7, 4, 2, no_repeat_ngram_size=1),
    ]
    tokens, scores = launched(model, *messages)
    ahead = model.family == "seq2seq"
    engine = engine_of(model, max_rows=7, pages=20, page_size=2, ahead=ahead, backend=backend())
    answers = Answers()
    for message in (search(model, 0, 5, 7, 2), *messages):
        engine.submit(message)
    for _ in range(6):
        answers.add(engine.step())
    assert answers.steps[-1].preemptions > 0
    engine.cancel(0)
    while engine.busy:
        answers.add(engine.step())
    assert answers.tokens == tokens
    assert scores_of(answers) == pytest.approx(scores, rel=1e-4)
    assert answers.steps[-1].pages_used == 0
    assert 0 < len(continued) < answers.total("replayed_steps")


@pytest.mark.parametrize("model", ["decoder"], indirect=True)
def test_a_steady_step_of_beams_uploads_nothing(model):
    engine = engine_of(model, max_rows=4, page_size=32, backend=backend())
    engine.submit(search(model, 1, 7, 6, 4))
    found = []
    while engine.busy:
        found += [(stats.host_to_device_copies, stats.replayed_steps) for stats in engine.step().stats]
    assert found[-4:] == [(0, 1)] * 4


def fill(lanes, tables, searches):
    """Lanes as they are while searches run: of each its lanes, tokens so far and settings."""
    lanes.active.zero_()
    lanes.head.fill_(-1)
    for chosen, length, settings in searches:
        for beam, lane in enumerate(chosen):
            lanes.active[lane], lanes.head[lane], lanes.sample[lane] = 1, chosen[0], beam
            lanes.length[lane], lanes.last_token[lane], lanes.cross_length[lane] = length, 7 * length + lane, length
            lanes.page_table[lane] = torch.randperm(40)[: lanes.page_table.shape[1]]
            tables.holders[lane] = chosen[0]
        tables.settings[chosen[0]] = torch.tensor(settings, dtype=torch.int32)


@pytest.mark.skipif(ON_GPU, reason="a graph of a GPU refuses by itself what is forbidden here")
def test_a_step_launches_the_same_whatever_is_searched(model):
    """The same ops and kernels at the same addresses with the same numbers."""
    cache, lanes = model.new_cache(40, 4), Lanes(5, 16, 16 * (model.family == "seq2seq"), model.device)
    tables = BeamTables(5, 64, model.device)
    cache.k.zero_()
    cache.v.zero_()
    graphs = Graphs(EmulatedGraphs())
    steps = DecodeSteps(model, cache, lanes, tables, graphs)
    read, go_on = partial(steps._read, 5, beams=True), partial(steps._continue_beams, 5)
    graphs.capture(("decode", Bucket(5, beams=True)), read)
    found = []
    # Of the settings: beams, candidates, ends, tokens of the prompt, limit, early stopping, and no length penalty.
    for searches in (
        [([0, 3], 9, [2, 4, 1, 4, 30, 0, 0]), ([1, 2, 4], 5, [3, 12, 3, 1, 60, 1, 0])],
        [([1, 3, 4], 30, [3, 6, 0, 30, 31, 2, 0])],
    ):
        fill(lanes, tables, searches)
        found.append(recorded(read, go_on))
    first, second = found
    assert first == second
    assert len(first[0]) > 20
    kernels = [name for name, _ in first[1] if name.endswith("_kernel")]
    assert kernels == ["top_logprobs_kernel", "merge_logprobs_kernel", "beam_step_kernel"]
