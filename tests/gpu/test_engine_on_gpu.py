"""Engines on a GPU say what engines on a CPU say: tiny models of every architecture, among others, twice over.

Where two tokens are all but equally likely on the CPU either is right, and what follows it is not compared.
"""

from __future__ import annotations

import numpy as np
import pytest

from support.architectures import DECODERS, ENCODERS, SEQ2SEQ
from support.checkpoints import tiny
from support.engine import generate, run, settings
from support.generation import NEW_TOKENS, PROMPTS, START
from tercet.server.engine.loading import load_engine
from tercet.server.wire import Embed, token_ids

TIE = 1e-3  # of a log probability, in float32 on both sides
NEAR = 1e-4  # ‖a - b‖ / ‖b‖ of vectors
SALT = "second time"  # finds nothing of the first in the cache


def engine_on(device, folder, **changes):
    """A warm engine in float32, with the kernels that a server would choose."""
    options = {"device": device, "kernels": "auto", "max_batch_tokens": 128, "page_size": 16} | changes
    return load_engine(settings(source=str(folder), **options), lambda _: None)[0]


def ask(family, **options):
    """Every prompt, each with its own options or all with the same."""
    start = START if family == "seq2seq" else []
    return [generate(key, ids, NEW_TOKENS, decoder_ids=start, **options) for key, ids in enumerate(PROMPTS)]


def assert_alike(found, expected, told):
    """Equal tokens up to a tie; `told` are the log probabilities of `expected` with the two likeliest."""
    for step, (token, other) in enumerate(zip(found, expected, strict=True)):
        if token != other:
            first, second = told[step].top_logprobs
            assert first - second < TIE, f"step {step}: {token} is not {other}, which is no tie"
            return


@pytest.fixture(scope="module", params=[*DECODERS, *SEQ2SEQ])
def generative(request, device, tmp_path_factory):
    """Family, the engine under test and one on the CPU of one checkpoint."""
    folder = tiny(tmp_path_factory.mktemp("model"), request.param)
    family = "seq2seq" if request.param in SEQ2SEQ else "decoder"
    return family, engine_on(device, folder), engine_on("cpu", folder)


def test_greedy_tokens(generative):
    family, ours, cpu = generative
    expected = run(cpu, *ask(family, logprobs=True, top_logprobs=2))
    for salt in ("", SALT):  # graphs that exist, pages that were used
        found = run(ours, *ask(family, salt=salt))
        assert not found.rejected
        for key in expected.tokens:
            assert_alike(found.tokens[key], expected.tokens[key], expected.logprobs[key])


def test_samples_of_the_same_seeds(generative):
    family, ours, cpu = generative
    drawn = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 2**64 - 3, "n": 2, "min_p": 0.01}
    expected, found = run(cpu, *ask(family, **drawn)), run(ours, *ask(family, **drawn))
    same = [found.tokens[key] == tokens for key, tokens in expected.tokens.items()]
    assert sum(same) >= len(same) - 1, "more than one draw lies at the very edge of two tokens"


def test_beams(generative):
    family, ours, cpu = generative
    expected, found = (run(engine, *ask(family, num_beams=3)) for engine in (cpu, ours))
    same = [found.tokens[key] == tokens for key, tokens in expected.tokens.items()]
    assert sum(same) >= len(same) - 1, "more than one search has two continuations that are all but equally likely"


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("row", ENCODERS)
def test_vectors(device, tmp_path, row, layout):
    folder = tiny(tmp_path, row)
    texts = map(token_ids, PROMPTS)
    asked = [Embed(id=key, token_ids=ids, pooling="mean", normalize=True) for key, ids in enumerate(texts)]
    expected = run(engine_on("cpu", folder), *asked).vectors
    engine = engine_on(device, folder, layout=layout)
    for _ in range(2):
        found = run(engine, *asked).vectors
        for key, vector in expected.items():
            given, right = (np.frombuffer(data, dtype="<f4") for data in (found[key], vector))
            assert np.linalg.norm(given - right) <= NEAR * np.linalg.norm(right)
