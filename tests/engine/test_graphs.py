"""Replayed steps give what launched ones give, whatever the mix, and nothing of a batch is baked into them."""

import random

import pytest
import torch

from support.checkpoints import VOCAB_SIZE, tiny_llama, tiny_t5
from support.device import DEVICE, ON_GPU
from support.engine import engine_of, generate, run
from support.graphs import EmulatedGraphs
from tercet.kernels import dispatch
from tercet.server.engine.graphs import CudaGraphs
from tercet.server.models import load_model

MAKERS = {"decoder": tiny_llama, "seq2seq": tiny_t5}


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    """The kernels that are compiled, or in Triton's interpreter: what serves on a CPU reads lengths on the host."""
    if not ON_GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    dispatch.select("triton")
    yield
    dispatch.select("auto")


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


def test_tokens_are_those_of_launched_steps(model):
    wanted = run(engine_of(model, max_rows=2), *messages(model))
    backend = CudaGraphs() if ON_GPU else EmulatedGraphs()
    answers = run(engine_of(model, max_rows=2, ahead=True, backend=backend), *messages(model))
    assert answers.tokens == wanted.tokens
    assert answers.steps[-1].pages_used == 0
