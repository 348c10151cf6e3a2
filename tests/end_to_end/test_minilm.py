"""MiniLM's embeddings over gRPC against transformers' in fp32."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from support.metrics import metric
from support.packaged import minilm
from support.server import running_server
from tercet.client import Client

TEXTS = 500


@pytest.fixture(scope="module")
def texts():
    """Words of the model's own vocabulary, so that a text of n words has about n tokens: 1 to 250."""
    rng = random.Random(0)
    words = [line.strip() for line in (minilm() / "vocab.txt").read_text(encoding="utf-8").splitlines()]
    words = [word for word in words if word.isascii() and word.isalpha()]
    lengths = [rng.randint(1, 248) for _ in range(TEXTS - 2)] + [1, 248]
    return [" ".join(rng.choices(words, k=length)) for length in lengths]


@pytest.fixture(scope="module")
def reference(texts):
    """Mean of the last hidden states over the tokens, scaled to length 1: what the checkpoint's modules.json says."""
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    model = AutoModel.from_pretrained(minilm(), dtype=torch.float32).eval()
    vectors = np.empty((len(texts), model.config.hidden_size), np.float32)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    with torch.inference_mode():
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            batch = tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            mask = batch["attention_mask"][..., None].float()
            hidden = model(**batch).last_hidden_state
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            vectors[rows] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
    return vectors


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_embeddings_equal_transformers(texts, reference, layout):
    rng = random.Random(1)
    shuffled = list(range(len(texts)))
    rng.shuffle(shuffled)
    pieces = [shuffled[i : i + 50] for i in range(0, len(shuffled), 50)]
    with running_server({"minilm": minilm()}, "--layout", layout) as server, Client(server.address) as client:

        def embed(rows):
            return rows, client.embed([texts[i] for i in rows], model="minilm")

        vectors = np.full_like(reference, np.nan)
        with ThreadPoolExecutor(4) as pool:
            for rows, result in pool.map(embed, pieces):
                vectors[rows] = result
        one = client.embed(texts[0])
        assert one.shape == (384,)
        assert one.dtype == np.float32
        padding = metric(server, "tercet_batch_tokens_total", model="minilm", kind="padding")
        assert (padding > 0) == (layout == "padded")
    cosines = (vectors * reference).sum(axis=1)
    assert cosines.min() >= 0.99999
    assert one @ reference[0] >= 0.99999
