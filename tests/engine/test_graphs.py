"""Replayed steps give the tokens of launched ones, whatever the mix, and nothing of a batch is baked into them."""

import random

import pytest
import torch

from support.checkpoints import VOCAB_SIZE, tiny_llama, tiny_t5
from support.engine import engine_of, generate, run
from support.graphs import EmulatedGraphs
from tercet.kernels import dispatch
from tercet.server.models import load_model

MAKERS = {"decoder": tiny_llama, "seq2seq": tiny_t5}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """The kernels in Triton's interpreter; what serves on a CPU reads lengths on the host."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    dispatch.select("triton")
    yield
    dispatch.select("auto")


@pytest.fixture(scope="module", params=MAKERS)
def model(request, tmp_path_factory):
    folder = MAKERS[request.param](tmp_path_factory.mktemp(request.param))
    return load_model(folder, device=torch.device("cpu"), dtype="float32", max_length=64)


def messages(model, count=5):
    rng = random.Random(3)
    start = [0] if model.family == "seq2seq" else []
    kinds = [
        {}, {"temperature": 1.0, "top_k": 20, "seed": 2**63 + 1}, {"repetition_penalty": 1.4},
        {"temperature": 0.8, "top_p": 0.9, "logprobs": True}, {},
    ]  # fmt: skip
    return [
        generate(
            key, [rng.randrange(1, VOCAB_SIZE) for _ in range(rng.randint(1, 9))], 3 + key, decoder_ids=start, **kind
        )
        for key, kind in enumerate(kinds[:count])
    ]


@pytest.mark.parametrize("ahead", [False, True])
def test_tokens_are_those_of_launched_steps(model, ahead):
    wanted = run(engine_of(model, max_rows=3), *messages(model))
    backend = EmulatedGraphs()
    answers = run(engine_of(model, max_rows=3, ahead=ahead, backend=backend), *messages(model))
    assert answers.tokens == wanted.tokens
    assert answers.steps[-1].pages_used == 0
    assert backend.replays > 10
