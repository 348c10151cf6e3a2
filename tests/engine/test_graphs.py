"""Replayed steps give what launched ones give, whatever the mix, and nothing of a batch is baked into them."""

import random
from functools import partial

import numpy as np
import pytest
import torch

from support.checkpoints import VOCAB_SIZE, tiny_bert, tiny_llama, tiny_t5
from support.device import DEVICE, ON_GPU
from support.engine import engine_of, expected, generate, null_engine, request, run
from support.graphs import EmulatedGraphs, HostReadError, Recorder, backend, recorded
from tercet.kernels import dispatch
from tercet.server.engine import tuning
from tercet.server.engine.beam_tables import BeamTables
from tercet.server.engine.decode_steps import Bucket, DecodeSteps
from tercet.server.engine.encoder_steps import EncoderSteps
from tercet.server.engine.graphs import Graphs
from tercet.server.engine.lanes import Lanes
from tercet.server.engine.sampler import CLASSES
from tercet.server.engine.sequence import reading_request
from tercet.server.models import load_model
from tercet.server.wire import Embed, token_ids

pytestmark = pytest.mark.usefixtures("triton_kernels")

MAKERS = {"decoder": tiny_llama, "seq2seq": tiny_t5}


@pytest.fixture(autouse=True)
def _buckets(monkeypatch):
    """Few and small: the interpreter is slow."""
    monkeypatch.setattr(tuning, "DECODE_ROWS", (2, 512))
    monkeypatch.setattr(tuning, "ENCODER_TOKENS", (8, 13))
    monkeypatch.setattr(tuning, "ENCODER_TEXTS", (3,))


@pytest.fixture(scope="module", params=MAKERS)
def model(request, tmp_path_factory):
    folder = MAKERS[request.param](tmp_path_factory.mktemp(request.param), **{"num_hidden_layers": 2})
    return load_model(folder, device=torch.device(DEVICE), dtype="float32", max_length=64)


def messages(model):
    """Greedy, by one of few, by all, with a penalty, and told how likely; more than there are rows for."""
    rng = random.Random(3)
    start = [0] if model.family == "seq2seq" else []
    kinds = [
        {}, {"temperature": 1.0, "top_k": 20, "seed": 2**63 + 1}, {"temperature": 0.8, "top_p": 0.9},
        {"repetition_penalty": 1.4, "logprobs": True},
    ]  # fmt: skip
    return [
        generate(key, rng.choices(range(1, VOCAB_SIZE), k=3 + key), [5, 3, 4, 2][key], decoder_ids=start, **kind)
        for key, kind in enumerate(kinds)
    ]


def test_tokens_are_those_of_launched_steps(model, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(dispatch, "_selected", None)  # what serves without graphs
        wanted = run(engine_of(model, max_rows=2), *messages(model))
    answers = run(engine_of(model, max_rows=2, ahead=True, backend=backend()), *messages(model))
    assert answers.tokens == wanted.tokens
    assert answers.steps[-1].pages_used == 0
    replayed = {stats.phase: stats.replayed_steps for stats in answers.stats if stats.phase != "prefill"}
    assert replayed == ({"decode": 1} if model.family == "decoder" else {"decode": 1, "encode": 1})


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_vectors_are_those_of_launched_batches(tmp_path, layout):
    """Batches of one and of three texts, in the smallest bucket that holds them; a longer one is launched."""
    model = load_model(tiny_bert(tmp_path, num_hidden_layers=2), device=torch.device(DEVICE), dtype="float32")
    ids = token_ids([5, 9, 200, 31, 8, 77, 12])
    replayed, launched = (engine_of(model, layout=layout, **options) for options in ({"backend": backend()}, {}))
    for lengths in ((5,), (2, 3, 4), (7, 7, 1)):
        messages = [
            Embed(
                id=key,
                token_ids=ids[-length:],
                type_ids=token_ids([1] * length) if key == 1 else None,
                pooling=("mean", "cls", "none")[key],
                normalize=True,
            )
            for key, length in enumerate(lengths)
        ]
        found, wanted = run(replayed, *messages), run(launched, *messages)
        for key in range(len(lengths)):
            vectors, others = (np.frombuffer(answers.vectors[key], "<f4") for answers in (found, wanted))
            np.testing.assert_allclose(vectors, others, atol=1e-5)
        (stats,) = found.stats
        stored = max(lengths) * len(lengths) if layout == "padded" else sum(lengths)
        assert stats.real_tokens + stats.padding_tokens == next((n for n in (8, 13) if n >= stored), stored)
        assert stats.replayed_steps == (stored <= 13)


@pytest.mark.skipif(ON_GPU, reason="a graph of a GPU refuses by itself what is forbidden here")
def test_a_step_launches_the_same_whatever_is_in_it(model):
    """The same ops and kernels at the same addresses with the same numbers."""
    cache, lanes = model.new_cache(40, 4), Lanes(2, 16, 16 * (model.family == "seq2seq"), model.device)
    cache.k.zero_()
    cache.v.zero_()
    graphs = Graphs(EmulatedGraphs())
    steps = DecodeSteps(model, cache, lanes, BeamTables(2, 64, model.device), graphs)
    read, *draws = partial(steps._read, 2), *(partial(steps._draw, 2, likeliest) for likeliest in CLASSES)
    graphs.capture(("decode", Bucket(2, beams=False)), read)
    recordings = []
    # Of each lane that takes part, its tokens so far and the last of them.
    for filled in ({0: [9, 4], 1: [30, 7]}, {1: [2, 50]}):
        for lane, (length, last) in filled.items():
            lanes.length[lane], lanes.last_token[lane], lanes.cross_length[lane] = length, last, 1 + length
            lanes.page_table[lane] = torch.randperm(40)[:16]
        lanes.active[:2] = torch.tensor([lane in filled for lane in range(2)])
        recordings.append(recorded(read, *draws))
    first, second = recordings
    assert first == second
    assert all(len(launches) > 1 for launches in first)
    assert len(first[0]) > 20


@pytest.mark.skipif(ON_GPU, reason="a graph of a GPU refuses by itself what is forbidden here")
def test_a_batch_launches_the_same_whatever_is_in_it(tmp_path):
    model = load_model(tiny_bert(tmp_path, num_hidden_layers=2), device=torch.device("cpu"), dtype="float32")
    bucket = tuning.EncoderBucket(13, 3, 13)
    steps = EncoderSteps(model, None, Graphs(EmulatedGraphs()), [bucket])
    found = []
    for lengths in ((3, 4, 2), (13,)):
        messages = (Embed(id=0, token_ids=token_ids([5] * n), pooling="mean", normalize=True) for n in lengths)
        packed = steps.pack(bucket, [reading_request(message, 0) for message in messages], [0, 3, 7][: len(lengths)])
        steps.fill(bucket, torch.tensor(packed, dtype=torch.int32))
        found += recorded(partial(steps._read, bucket))
    assert found[0] == found[1]
    assert len(found[0]) > 10


@pytest.mark.skipif(ON_GPU, reason="a graph of a GPU refuses by itself what is forbidden here")
@pytest.mark.parametrize(
    "read", [lambda x: x.max().item(), lambda x: x.tolist(), lambda x: x[x > 0], lambda x: int(x[0]), lambda x: x.cpu()]
)
def test_what_the_host_reads_is_noticed(read):
    with pytest.raises(HostReadError), Recorder():
        read(torch.arange(3) + 1)


class Refusing:
    """Captures nothing."""

    def capture(self, run):
        raise RuntimeError("operation not permitted when stream is capturing")


def test_what_can_not_be_captured_is_launched(caplog):
    engine, _ = null_engine("seq2seq", backend=Refusing())
    search = request("seq2seq", 2, [5, 9], 5, num_beams=3, n=3)
    answers = run(engine, request("seq2seq", 1, [3, 4, 6], 5), search)
    assert answers.tokens.pop((1, 0)) == expected("seq2seq", [3, 4, 6], 5)
    assert answers.tokens == run(null_engine("seq2seq")[0], search).tokens
    assert answers.total("replayed_steps") == 0
    reasons = {record.fields["reason"] for record in caplog.records}
    assert reasons == {"operation not permitted when stream is capturing"}


@pytest.mark.parametrize("model", ["decoder"], indirect=True)
def test_a_steady_step_uploads_nothing_and_counts_its_kernels(model):
    """One row in one page: after its first step the device knows all it needs."""
    engine = engine_of(model, max_rows=1, page_size=32, backend=backend())
    engine.submit(generate(1, [5, 9, 31], 5))
    found = []
    for _ in range(5):
        before = dispatch.launches()
        (stats,) = engine.step().stats
        calls = dispatch.launches()["kv_write/triton"] - before.get("kv_write/triton", 0)
        found.append((stats.phase, stats.host_to_device_copies, calls))
    assert found == [("prefill", 1, 2), ("decode", 1, 2), *[("decode", 0, 2)] * 3]
