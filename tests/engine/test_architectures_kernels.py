"""Of every architecture, engines answer with the Triton kernels, in Triton's interpreter, as with those of a CPU."""

import random

import numpy as np
import pytest
import torch

from support.architectures import ROWS, VOCAB_SIZE
from support.checkpoints import save
from support.engine import engine_of, generate, run
from tercet.kernels import dispatch
from tercet.server.engine.memory import generates
from tercet.server.models import load_model
from tercet.server.wire import Embed, token_ids

TEXT = random.Random(19).choices(range(4, VOCAB_SIZE), k=19)
# The first row of each architecture.
MODELS = {ROWS[row].architecture: row for row in reversed(ROWS) if "encoder" not in row}


def messages(model):
    """Vectors of every token, and where the model writes, greedy tokens and beams."""
    yield Embed(id=0, token_ids=token_ids(TEXT), pooling="none", normalize=False)
    if generates(model):
        for beams in (1, 2):
            start = [0] if model.family == "seq2seq" else []
            yield generate(beams, TEXT, 3, num_beams=beams, n=beams, decoder_ids=start)


@pytest.mark.parametrize("row", MODELS.values())
def test_answers_are_those_of_a_cpu(row, tmp_path, triton_kernels):
    model = load_model(save(tmp_path, row), device=torch.device("cpu"), dtype="float32")
    before = dispatch.launches()
    said = run(engine_of(model, page_size=16), *messages(model))
    ran = {key for key, count in dispatch.launches().items() if count > before.get(key, 0)}
    assert {key.split("/")[1] for key in ran} == {"triton"}
    dispatch.select("auto")
    expected = run(engine_of(model, page_size=16), *messages(model))
    vectors, others = (np.frombuffer(answers.vectors[0], "<f4") for answers in (said, expected))
    np.testing.assert_allclose(vectors, others, atol=1e-4, rtol=1e-4)
    assert said.tokens == expected.tokens
