"""Decoders' files as they lie on the hub: older names and buffers, every spelling of a config, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.decoder_rows import LINEAR, LLAMA3, YARN
from support.forward import Decoding, Pair, texts
from support.loading import CPU, WEIGHTS, Tensors, refusal, rewrite
from tercet.server.models import Model, load_model

Load = Callable[..., Pair]


def outputs(model: Model) -> torch.Tensor:
    """Logits of two texts."""
    return model.logits(torch.cat(Decoding(model, 2).read(texts(23, 9))))


def without(prefix: str) -> Callable[[Tensors], Tensors]:
    """Files of which the tensors have no prefix."""
    return lambda tensors: {name.removeprefix(prefix): value for name, value in tensors.items()}


def beside(*names: str) -> Callable[[Tensors], Tensors]:
    """Files with buffers, of any content, beside the weights."""
    return lambda tensors: tensors | {name: torch.ones(1, 1, 3, 3, dtype=torch.uint8) for name in names}


NAMES: dict[str, tuple[str, Callable[[Tensors], Tensors]]] = {
    "gpt": ("openai-gpt", without("transformer.")),
    "gpt2": ("gpt2", lambda tensors: beside("h.0.attn.bias", "h.2.attn.bias")(without("transformer.")(tensors))),
    "distilgpt2": ("gpt2", beside("transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias")),
    "gpt2-copy": ("gpt2", lambda tensors: tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}),
    "gpt-neo": (
        "gpt_neo",
        beside("transformer.h.0.attn.attention.bias", "transformer.h.2.attn.attention.masked_bias"),
    ),
    "opt": ("opt", without("model.")),
    "opt-350m": ("opt-350m", without("model.")),
    "pythia": (
        "gpt_neox",
        beside(
            "gpt_neox.layers.0.attention.bias",
            "gpt_neox.layers.1.attention.masked_bias",
            "gpt_neox.layers.2.attention.rotary_emb.inv_freq",
        ),
    ),
    "pythia-renamed": (
        "gpt_neox",
        lambda tensors: {name.replace("embed_out", "lm_head"): value for name, value in tensors.items()},
    ),
    "llama": ("llama", beside("model.layers.1.self_attn.rotary_emb.inv_freq")),
    "qwen3-embedding": ("llama-tied", without("model.")),
}


@pytest.mark.parametrize("file", NAMES)
def test_other_names_of_the_same_tensors(pair: Load, tmp_path: Path, file: str) -> None:
    name, change = NAMES[file]
    folder = rewrite(pair(name), tmp_path, change(load_file(pair(name).folder / WEIGHTS)))
    assert torch.equal(outputs(load_model(folder, device=CPU)), outputs(pair(name).ours))


def test_a_head_of_its_own_counts_more_than_a_config_that_ties_it(pair: Load, tmp_path: Path) -> None:
    tensors = load_file(pair("gpt2").folder / WEIGHTS)
    head = torch.randn(331, 48)
    model = load_model(rewrite(pair("gpt2"), tmp_path, tensors | {"lm_head.weight": head}), device=CPU)
    hidden = torch.randn(3, 48)
    assert torch.allclose(model.logits(hidden), hidden @ head.T, atol=1e-5)


def old(parameters: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` as configs said it before transformers 5."""
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    return {"rope_parameters": None, "rope_theta": parameters["rope_theta"], "rope_scaling": scaling}


def oldest(parameters: dict[str, Any]) -> dict[str, Any]:
    """The same with `type` for `rope_type`."""
    config = old(parameters)
    config["rope_scaling"]["type"] = config["rope_scaling"].pop("rope_type")
    return config


SPELLINGS: list[tuple[str, dict[str, Any]]] = [
    ("llama-linear", old(LINEAR)),
    ("llama-linear", oldest(LINEAR)),
    ("llama-llama3", old(LLAMA3)),
    ("llama-yarn", oldest(YARN)),
    # The original length may stand outside, where it counts more; the factor follows from the lengths.
    (
        "llama-yarn",
        {"rope_parameters": {**YARN, "original_max_position_embeddings": 7}, "original_max_position_embeddings": 32},
    ),
    ("llama-yarn", {"rope_parameters": {**YARN, "factor": None}}),
    ("gpt_neox", {"rope_parameters": None, "rotary_emb_base": 10_000, "rotary_pct": 0.25}),
    ("gpt_neox", {"rope_parameters": None}),
    ("gpt_neo", {"attention_types": [[["local", "global", "local"], 1]], "attention_layers": None}),
    ("gpt_neo", {"attention_types": None, "attention_layers": ["local", "global", "local"]}),
    ("gpt_neo", {"attention_types": [[["global"], 3]], "attention_layers": ["local", "global", "local"]}),
    ("qwen2", {"layer_types": None}),
    ("qwen3", {"max_window_layers": 0}),
]


@pytest.mark.parametrize(("name", "config"), SPELLINGS, ids=str)
def test_other_spellings_of_the_same_config(pair: Load, tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    model = load_model(rewrite(pair(name), tmp_path, **config), device=CPU)
    assert model.spec == pair(name).ours.spec


def test_mistrals_window_is_4096_unless_told_and_none_if_null(pair: Load, tmp_path: Path) -> None:
    rewrite(pair("mistral"), tmp_path, sliding_window=None)
    assert load_model(tmp_path, device=CPU).spec.decoder.windows == ((4095, 0),)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"sliding_window": None}))
    assert load_model(tmp_path, device=CPU).spec.decoder.windows == (None,)


def test_how_long_sequences_may_be(pair: Load, tmp_path: Path) -> None:
    """Dynamic scaling starts where a checkpoint's positions end; YaRN's reach as far as its factor says."""
    message = refusal(pair("llama-dynamic").folder, max_length=257)
    assert message.endswith(
        "it must be at least 1 and at most the checkpoint's 256, since dynamic scaling of rotary positions beyond it "
        "is not supported"
    )
    folder = rewrite(pair("llama-yarn"), tmp_path, max_position_embeddings=32)
    assert load_model(folder, device=CPU).max_length == 32
    assert load_model(folder, device=CPU, max_length=256).max_length == 256
    assert refusal(folder, max_length=257).endswith("at most the checkpoint's 256")


REFUSED: list[tuple[str, str, Any]] = [
    ("llama", "rope_scaling.type", "longrope"),
    ("llama", "rope_scaling.rope_type", "su"),
    ("llama", "rope_parameters.rope_type", "llama3"),
    ("llama", "rope_parameters.partial_rotary_factor", 0.5),
    ("llama", "rope_parameters.attention_factor", -1),
    ("mistral", "partial_rotary_factor", 0.5),
    ("gpt_neox", "rope_parameters.partial_rotary_factor", 0.01),
    ("gpt_neox", "rotary_pct", 1.5),
    ("gpt_neox", "num_attention_heads", 7),
    ("gpt2", "n_inner", 0),
    ("gpt2", "activation_function", "mish"),
    ("gpt2", "add_cross_attention", True),
    ("openai-gpt", "afn", "gelu_new"),
    ("gpt_neo", "attention_types", [[["globl"], 3]]),
    ("gpt_neo", "attention_types", [["global", 3]]),
    ("gpt_neo", "attention_types", [[["global"], 10**9]]),
    ("gpt_neo", "attention_types", 3),
    ("gpt_neo", "attention_layers", ["local"] * 2),
    ("gpt_neo", "window_size", 0),
    ("opt", "layer_norm_elementwise_affine", False),
    ("mistral", "sliding_window", 0),
    ("qwen2", "layer_types", ["sliding_attention"] * 2),
    ("qwen2", "layer_types", ["chunked_attention"] * 3),
    ("qwen2", "layer_types", "full_attention"),
    ("qwen3", "layer_types", [["full_attention"]] * 3),
]


@pytest.mark.parametrize(("name", "key", "value"), REFUSED, ids=lambda value: str(value)[:24])
def test_what_cannot_be_is_refused_by_key(pair: Load, tmp_path: Path, name: str, key: str, value: object) -> None:
    outer, _, inner = key.partition(".")
    message = refusal(rewrite(pair(name), tmp_path, **{outer: {inner: value} if inner else value}))
    assert message.startswith(f"{tmp_path / 'config.json'}: {key} is {json.dumps(value)}, it must")


def test_windows_that_are_switched_off_are_refused(pair: Load, tmp_path: Path) -> None:
    message = refusal(rewrite(pair("qwen3"), tmp_path, use_sliding_window=False))
    assert "layer_types is" in message
    assert "use_sliding_window" in message


def test_the_names_of_an_answering_llama_begin_otherwise(pair: Load, tmp_path: Path) -> None:
    case = pair("llama", "LlamaForQuestionAnswering")
    tensors = load_file(case.folder / WEIGHTS)
    del tensors["transformer.layers.1.mlp.up_proj.weight"]
    message = refusal(rewrite(case, tmp_path, tensors))
    assert message == f"{tmp_path / WEIGHTS}: missing tensor transformer.layers.1.mlp.up_proj.weight"
