"""Two hundred requests of every task, to seven models at once: each is answered as it is alone."""

import asyncio
import random
from dataclasses import asdict, is_dataclass

import numpy as np
import pytest

from support.checkpoints import CORPUS, tiny
from support.metrics import metric
from support.server import running_server
from tercet.client import AsyncClient

WORDS = " ".join(CORPUS).split()
REQUESTS = 200
MEAN_BATCH = 4
TOLERANCE = 1e-4
BY_CHANCE = ("seed", "cached_tokens")  # not of an answer, but of when it was asked for
ENTAILMENT = {0: "contradiction", 1: "neutral", 2: "entailment"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    labels = {"num_labels": len(ENTAILMENT), "id2label": ENTAILMENT}
    return {
        "filler": tiny(root / "filler", "bert", "BertForMaskedLM"),
        "ranker": tiny(root / "ranker", "electra", "ElectraForSequenceClassification", num_labels=1),
        "judge": tiny(root / "judge", "roberta", "RobertaForSequenceClassification", **labels),
        "tagger": tiny(root / "tagger", "distilbert", "DistilBertForTokenClassification"),
        "answerer": tiny(root / "answerer", "modernbert", "ModernBertForQuestionAnswering"),
        "writer": tiny(root / "writer", "llama"),
        "translator": tiny(root / "translator", "bart", "BartForConditionalGeneration"),
    }


def text(rng, longest=12):
    return " ".join(rng.choices(WORDS, k=rng.randint(1, longest)))


def sampling(rng, seed):
    """One of the ways to choose tokens."""
    return rng.choice([
        {"temperature": 0},
        {"temperature": 0, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
        {"temperature": 0, "logprobs": True, "top_logprobs": 2},
        {"temperature": 0, "num_beams": 3, "n": 2, "length_penalty": 0.5},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "seed": seed, "n": 2},
        {"temperature": 1.1, "typical_p": 0.8, "presence_penalty": 0.5, "seed": seed},
    ])  # fmt: skip


KINDS = (
    lambda rng, _: ("embed", (text(rng),), {"model": rng.choice(["filler", "tagger", "writer", "translator"])}),
    lambda rng, _: ("embed", (text(rng),), {"model": "filler", "pooling": "none", "dimensions": 7}),
    lambda rng, _: ("rerank", (text(rng), [text(rng) for _ in range(3)]), {"model": "ranker"}),
    lambda rng, _: ("classify", ((text(rng), text(rng)),), {"model": "judge"}),
    lambda rng, _: ("classify", (text(rng),), {"model": "judge", "labels": ["river", "stone", "night"]}),
    lambda rng, _: ("tag", (text(rng),), {"model": "tagger", "aggregation": rng.choice(["none", "simple", "max"])}),
    lambda rng, _: ("fill_mask", (f"{text(rng)} [MASK] {text(rng)}",), {"model": "filler", "top_k": 3}),
    lambda rng, _: ("answer", (text(rng, 4), text(rng, 40)), {"model": "answerer", "max_length": 40, "stride": 10}),
    lambda rng, _: ("score", (text(rng),), {"model": rng.choice(["filler", "writer"])}),
    lambda rng, _: ("score", (text(rng), text(rng)), {"model": "translator"}),
    lambda rng, i: ("generate", (text(rng),), {"model": "writer", "max_new_tokens": 12, **sampling(rng, i)}),
    lambda rng, i: ("generate", (text(rng),), {"model": "translator", "max_new_tokens": 12, **sampling(rng, i)}),
)


def requests():
    rng = random.Random(0)
    kinds = [*KINDS, *rng.choices(KINDS, k=REQUESTS - len(KINDS))]
    return [kind(rng, i) for i, kind in enumerate(kinds)]


def flat(value):
    """What an answer says, without its floats, and the floats."""
    if isinstance(value, np.ndarray):
        return [value.shape], value.flatten().tolist()
    if isinstance(value, float):
        return [], [value]
    if is_dataclass(value):
        return flat(asdict(value))
    if isinstance(value, dict):
        return flat([part for name, part in value.items() if name not in BY_CHANCE])
    if not isinstance(value, list | tuple):
        return [value], []
    parts = [flat(part) for part in value]
    return [said for said, _ in parts], [number for _, numbers in parts for number in numbers]


def test_answers_are_those_of_the_requests_alone(checkpoints):
    async def ask(client, request):
        method, arguments, options = request
        return await getattr(client, method)(*arguments, **options)

    async def run(server):
        async with AsyncClient(server.address, timeout=120) as client:
            alone = [await ask(client, request) for request in requests()]
            before = rows_and_batches(server)
            return alone, await asyncio.gather(*(ask(client, request) for request in requests())), before

    def rows_and_batches(server):
        names = ("tercet_batch_size_sum", "tercet_batch_size_count")
        return np.array([metric(server, name) for name in names])

    with running_server(checkpoints) as server:
        alone, together, before = asyncio.run(run(server))
        rows, batches = rows_and_batches(server) - before
    assert rows / batches > MEAN_BATCH
    for request, expected, found in zip(requests(), alone, together, strict=True):
        (said, numbers), (other, others) = flat(expected), flat(found)
        assert said == other, request
        np.testing.assert_allclose(numbers, others, rtol=TOLERANCE, atol=TOLERANCE, err_msg=str(request))
