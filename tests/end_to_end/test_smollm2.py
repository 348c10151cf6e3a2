"""SmolLM2's greedy tokens over gRPC against transformers reading the same GGUF file, in fp32."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForCausalLM

from support.packaged import smollm2
from support.reference import follow_greedy
from support.server import running_server
from tercet.client import Client

NEW_TOKENS = 64
TOLERANCE = 1e-3  # of a logit, absolute
PROMPTS = [
    "Once upon a time, in a village by the sea,",
    "The three laws of thermodynamics are",
    "def fibonacci(n):\n    ",
    "Q: What is the capital of France?\nA:",
    "To bake bread you need flour,",
    "1, 1, 2, 3, 5, 8,",
    "The moon",
    "Dear Sir or Madam,\n\nI am writing to",
    "In 1969, the first humans",
    "A list of colours:\n- red\n- green\n-",
]


@pytest.fixture(scope="module")
def reference():
    path = smollm2()
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def client():
    with running_server({"smollm2": smollm2()}) as server, Client(server.address) as client:
        yield client


def greedy(client, prompt, *, streamed=False):
    """The prompt's ids and the tokens that follow."""
    options = {"max_new_tokens": NEW_TOKENS, "temperature": 0, "repetition_penalty": 1.0}
    (tokenized,) = client.tokenize([prompt])
    if not streamed:
        return tokenized.token_ids, client.generate(prompt, **options).token_ids
    tokens = [token for piece in client.stream(prompt, **options) for token in piece.token_ids]
    return tokenized.token_ids, tokens


def check(reference, prompt_ids, tokens):
    eos = reference.config.eos_token_id
    assert len(tokens) == NEW_TOKENS or tokens[-1] == eos
    return follow_greedy(reference, prompt_ids, tokens, tolerance=TOLERANCE)


def test_greedy_tokens_alone(client, reference, record_property):
    agreements = [check(reference, *greedy(client, prompt)) for prompt in PROMPTS]
    assert sum(a.steps for a in agreements) > 0.5 * NEW_TOKENS * len(PROMPTS)
    record_property("ties", sum(a.ties for a in agreements))


def test_greedy_tokens_among_random_others(client, reference, record_property):
    """The same prompts, every other one streamed, 32 requests at once."""
    rng = random.Random(0)

    def noise(_):
        ids = [rng.randrange(1000, 40000) for _ in range(rng.randint(1, 200))]
        client.generate(
            ids, max_new_tokens=rng.randint(1, NEW_TOKENS), temperature=1.0, top_p=0.9, seed=rng.getrandbits(64)
        )

    with ThreadPoolExecutor(32) as pool:
        others = [pool.submit(noise, i) for i in range(32 - len(PROMPTS))]
        ours = [pool.submit(greedy, client, p, streamed=i % 2 == 1) for i, p in enumerate(PROMPTS)]
        agreements = [check(reference, *future.result()) for future in ours]
        for other in others:
            other.result()
    record_property("ties", sum(a.ties for a in agreements))
