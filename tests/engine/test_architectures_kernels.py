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

LONG, SHORT = (random.Random(length).choices(range(4, VOCAB_SIZE), k=length) for length in (19, 5))
# The first row of each architecture.
MODELS = {ROWS[row].architecture: row for row in reversed(ROWS) if "encoder" not in row}


def messages(model):
    """Vectors of every token, and where the model writes, greedy tokens and beams."""
    yield Embed(id=1, token_ids=token_ids(LONG), pooling="none", normalize=False)
    if generates(model):
        start = [0] if model.family == "seq2seq" else []
        yield generate(2, LONG, 3, decoder_ids=start)
        yield generate(3, SHORT, 3, num_beams=2, n=2, decoder_ids=start)


@pytest.mark.parametrize(
    ("row", "layout"),
    [*((row, "packed") for row in MODELS.values()), *((row, "padded") for row in ("bert", "llama", "t5"))],
)
def test_answers_are_those_of_a_cpu(row, layout, tmp_path, triton_kernels):
    model = load_model(save(tmp_path, row), device=torch.device("cpu"), dtype="float32")
    before = dispatch.launches()
    said = run(engine_of(model, page_size=16, layout=layout), *messages(model))
    ran = {tuple(key.split("/")) for key, count in dispatch.launches().items() if count > before.get(key, 0)}
    assert {implementation for _, implementation in ran} == {"triton"}
    assert ("pad" in {op for op, _ in ran}) == (layout == "padded")
    dispatch.select("auto")
    expected = run(engine_of(model, page_size=16), *messages(model))
    vectors, others = (np.frombuffer(answers.vectors[1], "<f4") for answers in (said, expected))
    np.testing.assert_allclose(vectors, others, atol=1e-4, rtol=1e-4)
    assert said.tokens == expected.tokens
