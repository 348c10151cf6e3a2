"""GGUF files: llama.cpp's names and order of rows, every usual quantization, and damaged files."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Quantization
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from support.checkpoints import tiny_llama
from support.forward import Decoding, relative_error, texts
from tercet.server.models import CheckpointError, Model, load_model

CPU = torch.device("cpu")
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "model.layers": "blk",
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 500.0}
# The sizes are multiples of 32, a block of most quantizations.
SHAPE = {"attention_bias": False, "mlp_bias": False, "hidden_size": 96, "intermediate_size": 64, "head_dim": 32}

Tensors = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A tiny Llama as a Hugging Face folder, which the GGUF files are made of."""
    made: dict[str, Path] = {}

    def make(**config: Any) -> Path:
        key = json.dumps(config)
        if key not in made:
            made[key] = tiny_llama(tmp_path_factory.mktemp("llama"), **{"rope_parameters": ROPE} | SHAPE | config)
        return made[key]

    return make


def permute(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """The order of llama.cpp's convert_hf_to_gguf.py: LlamaModel.permute."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def converted(folder: Path) -> Tensors:
    """The tensors of a Hugging Face Llama as llama.cpp names and orders them."""
    config = json.loads((folder / "config.json").read_text())
    tensors: Tensors = {}
    for name, value in load_file(folder / "model.safetensors").items():
        rows = value.numpy()
        if "q_proj" in name or "k_proj" in name:
            rows = permute(rows, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        tensors[reduce(lambda changed, names: changed.replace(*names), NAMES.items(), name)] = rows
    return tensors


def quantize(tensors: Tensors, kind: Quantization) -> tuple[Tensors, dict[str, Quantization]]:
    """The matrices as blocks of `kind`, and which tensors those are."""
    matrices = {name: kind for name, value in tensors.items() if value.ndim == 2}
    blocks = {name: gguf.quants.quantize(tensors[name], kind) for name in matrices}
    return tensors | blocks, matrices


def write(
    file: Path, folder: Path, tensors: Tensors, kinds: dict[str, Quantization] | None = None, **metadata: Any
) -> Path:
    """A GGUF file of a folder's config. Tensors in `kinds` are blocks of that kind; `metadata` replaces keys."""
    config = json.loads((folder / "config.json").read_text())
    keys = {
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "rope.dimension_count": config["head_dim"],
        "rope.freq_base": config["rope_parameters"]["rope_theta"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
    }
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in (keys | metadata).items():
        add = {int: writer.add_uint64, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(f"llama.{key}", value)
    writer.add_token_list(["a"] * 331)
    for name, value in tensors.items():
        writer.add_tensor(name, value, raw_dtype=(kinds or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def logits(model: Model) -> torch.Tensor:
    return model.logits(torch.cat(Decoding(model, 2).read(texts(23, 9))))


def refusal(file: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(file, device=CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_gguf_file_is_the_folder_it_was_made_of(folder: Callable[..., Path], tmp_path: Path, tied: bool) -> None:
    source = folder(tie_word_embeddings=tied)
    model = load_model(write(tmp_path / "tiny.gguf", source, converted(source)), device=CPU)
    assert model.spec.head.tied == tied
    assert (model.architecture, model.vocab_size, model.max_length) == ("llama", 331, 256)
    assert relative_error(logits(model), logits(load_model(source, device=CPU))) < 1e-6


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"])
def test_quantized_weights_are_those_that_the_quantization_means(
    folder: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    source = folder()
    tensors = converted(source)
    quantized = load_model(write(tmp_path / "q.gguf", source, *quantize(tensors, Quantization[kind])), device=CPU)
    blocks, kinds = quantize(tensors, Quantization[kind])
    meant = tensors | {name: gguf.quants.dequantize(blocks[name], kinds[name]) for name in kinds}
    expected = load_model(write(tmp_path / "f.gguf", source, meant), device=CPU)
    assert torch.equal(logits(quantized), logits(expected))


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants(folder: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    """Any bytes are blocks; below 100 none of them is a float16 scale that is infinite or not a number."""
    source = folder(hidden_size=768, num_hidden_layers=1, head_dim=128)
    tensors, name = converted(source), "blk.0.ffn_up.weight"
    block, size = gguf.GGML_QUANT_SIZES[Quantization[kind]]
    shape = (tensors[name].shape[0], tensors[name].shape[1] // block * size)
    blocks = np.random.default_rng(0).integers(0, 100, shape, dtype=np.uint8)
    meant = gguf.quants.dequantize(blocks, Quantization[kind])
    assert meant.shape == tensors[name].shape
    quantized = write(tmp_path / "q.gguf", source, tensors | {name: blocks}, {name: Quantization[kind]})
    up = load_model(quantized, device=CPU).transformer.get_parameter("decoder.layers.0.feedforward.body.up.weight")
    assert torch.equal(up[64:], torch.from_numpy(meant))


def test_scaled_rotary_frequencies_come_as_a_tensor(folder: Callable[..., Path], tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
    source = folder(rope_parameters=ROPE | scaling | {"low_freq_factor": 1.0, "high_freq_factor": 4.0})
    scaled = LlamaForCausalLM.from_pretrained(source).model.rotary_emb.inv_freq
    unscaled = 1 / ROPE["rope_theta"] ** (torch.arange(0, 32, 2) / 32)
    tensors = converted(source) | {"rope_freqs.weight": (unscaled / scaled).numpy()}
    model = load_model(write(tmp_path / "tiny.gguf", source, tensors), device=CPU)
    assert relative_error(logits(model), logits(load_model(source, device=CPU))) < 1e-5


def test_wrong_tensors_are_refused_by_name(folder: Callable[..., Path], tmp_path: Path) -> None:
    source, file = folder(), tmp_path / "tiny.gguf"
    tensors = converted(source)
    name = "blk.1.attn_k.weight"
    rest = {other: value for other, value in tensors.items() if other != name}
    assert refusal(write(file, source, rest)) == f"{file}: missing tensor {name}"
    assert refusal(write(file, source, tensors | {"blk.1.bogus": tensors[name]})) == (
        f"{file}: unexpected tensor blk.1.bogus"
    )
    assert f"{file}: tensor {name} has shape [63, 96]" in refusal(write(file, source, rest | {name: tensors[name][1:]}))
    whole = tensors[name].astype(np.int32)
    assert f"{file}: tensor {name} is stored as I32" in refusal(write(file, source, rest | {name: whole}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 1 << 40),
        ("embedding_length", 0),
        ("attention.head_count_kv", 4),
        ("attention.value_length", 16),
        ("rope.dimension_count", 16),
        ("rope.scaling.type", "yarn"),
        ("rope.freq_base", float("nan")),
        ("context_length", "long"),
        ("expert_count", 8),
    ],
)
def test_absurd_metadata_is_refused_by_key(
    folder: Callable[..., Path], tmp_path: Path, key: str, value: int | float | str
) -> None:
    file = tmp_path / "tiny.gguf"
    message = refusal(write(file, folder(), converted(folder()), **{key: value}))
    assert message.startswith(f"{file}: llama.{key} is ")
    assert "must" in message


def damaged(content: bytes) -> dict[str, bytes]:
    huge = (1 << 60).to_bytes(8, "little")
    tokens = content.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 4
    return {
        "empty": b"",
        "no-magic": b"x" + content[1:],
        "version": content[:4] + b"\x63" + content[5:],
        "half-a-header": content[:300],
        "truncated": content[:-5000],
        "tensor-count": content[:8] + huge + content[16:],
        "key-count": content[:16] + huge + content[24:],
        "array-of-nothing": content[:tokens] + b"\x00\x00\x00\x00" + huge + content[tokens + 12 :],
        "dimensions": content.replace(b"output_norm.weight\x01", b"output_norm.weight\x7f"),
    }


def test_damaged_files_are_refused(folder: Callable[..., Path], tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf", folder(), converted(folder()))
    for kind, content in damaged(file.read_bytes()).items():
        file.write_bytes(content)
        message = refusal(file)
        assert message.startswith(f"{file}: not a readable GGUF file: "), kind
        assert ("an array claims" in message) == (kind == "array-of-nothing")


def test_only_architectures_with_gguf_tables_are_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "bert.gguf", "bert")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = refusal(tmp_path / "bert.gguf")
    known = "gpt2 or llama or qwen2 or qwen3"
    assert message == f'{tmp_path / "bert.gguf"}: general.architecture is "bert", it must be {known}'
    assert refusal(tmp_path / "none.gguf") == f"{tmp_path / 'none.gguf'}: no such file or folder"
