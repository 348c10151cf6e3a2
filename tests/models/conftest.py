"""Checkpoints loaded twice, by us and by transformers, once for each module that asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
import transformers

from support.checkpoints import tiny_bert, tiny_llama, tiny_t5
from support.forward import Pair
from tercet.server.models import load_model

AUTO = {
    "encoder": transformers.AutoModel,
    "decoder": transformers.AutoModelForCausalLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
CASES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "bert": (tiny_bert, {}),
    "bert-tanh": (tiny_bert, {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}),
    "llama": (tiny_llama, {}),
    "llama-tied": (tiny_llama, {"tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False}),
    "llama-linear": (tiny_llama, {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}}),
    "llama-llama3": (tiny_llama, {"rope_parameters": LLAMA3}),
    "t5": (tiny_t5, {}),
    "t5-relu": (tiny_t5, {"feed_forward_proj": "relu", "tie_word_embeddings": False}),
}


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """A case by name."""

    @cache
    def load(name: str) -> Pair:
        make, config = CASES[name]
        folder = make(tmp_path_factory.mktemp(name), **config)
        ours = load_model(folder, device=torch.device("cpu"))
        return Pair(folder, ours, AUTO[ours.family].from_pretrained(folder).eval())

    return load


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield
