"""Tables of positions are transformers': scaled rotary frequencies, and both layouts of sines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

from tercet.server.models.layers import sinusoids
from tercet.server.models.positions import Rotary, frequencies
from tercet.server.models.spec import RotarySpec

YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta_fast": 8.0, "beta_slow": 2.0},
        {"truncate": False},
        {"original_max_position_embeddings": 1 << 20},
        {"original_max_position_embeddings": 2},  # the range is empty
        {"attention_factor": 0.7},
    ],
)
def test_yarn_is_the_references(changes: dict[str, Any]) -> None:
    parameters = YARN | changes
    config = LlamaConfig(hidden_size=96, num_attention_heads=3, max_position_embeddings=128, rope_parameters=parameters)
    expected, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    names = ("factor", "beta_fast", "beta_slow", "truncate")
    spec = RotarySpec(
        theta=parameters["rope_theta"],
        dim=32,
        scaling="yarn",
        original_max_length=parameters["original_max_position_embeddings"],
        attention_factor=attention_factor,
        **{name: parameters[name] for name in names if name in parameters},
    )
    torch.testing.assert_close(frequencies(spec), expected, rtol=1e-6, atol=0)
    rotary = Rotary(spec, 50)
    rotary.prepare(torch.device("cpu"))
    angles = torch.outer(torch.arange(50.0), expected)
    torch.testing.assert_close(rotary.cos, angles.cos() * attention_factor, rtol=0, atol=1e-5)
    torch.testing.assert_close(rotary.sin, angles.sin() * attention_factor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [6, 32, 33])
def test_sines_of_the_original_transformer(width: int) -> None:
    expected = MarianSinusoidalPositionalEmbedding(700, width).create_weight()
    torch.testing.assert_close(sinusoids(torch.arange(700), width, fairseq=False), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [6, 32, 33])
def test_fairseqs_sines(width: int) -> None:
    expected = M2M100SinusoidalPositionalEmbedding.get_embedding(702, width)
    torch.testing.assert_close(sinusoids(torch.arange(2, 702), width, fairseq=True), expected[2:], rtol=0, atol=1e-6)
