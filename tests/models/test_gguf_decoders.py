"""GGUF files of every decoder that has tables for them, named by llama.cpp's own package, read as transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGUFWriter
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from support.checkpoints import save
from support.forward import Decoding, relative_error, texts
from tercet.server.models import load_model

CPU = torch.device("cpu")
TOLERANCE = 1e-4
# What transformers does not find in these files it takes from its defaults: GPT-2's 1024 positions and four times the
# width, Qwen3's heads of 128.
ROWS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_positions": 1024, "n_inner": None, "scale_attn_by_inverse_layer_idx": False},
    "llama": {"attention_bias": False, "mlp_bias": False},
    "qwen2": {"hidden_size": 96, "use_sliding_window": False},
    "qwen3": {"head_dim": 128, "attention_bias": False, "use_sliding_window": False, "layer_types": None},
}


def write(file: Path, folder: Path, name: str) -> Path:
    """A GGUF file of a folder, as llama.cpp's converter writes it."""
    config: Any = AutoConfig.from_pretrained(folder)
    writer = GGUFWriter(file, name)
    for key, value in metadata(config).items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(f"{name}.{key}", value)
    writer.add_token_list(["a"] * config.vocab_size)
    names = gguf.get_tensor_name_map(getattr(MODEL_ARCH, name.upper()), config.num_hidden_layers)
    for tensor, value in load_file(folder / "model.safetensors").items():
        writer.add_tensor(names.get_name(tensor, (".weight", ".bias")), arrange(tensor, value.numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def metadata(config: Any) -> dict[str, int | float]:
    """The keys that the converter writes."""
    keys = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
    }
    if config.model_type == "gpt2":
        return keys | {
            "feed_forward_length": 4 * config.hidden_size,
            "attention.layer_norm_epsilon": config.layer_norm_epsilon,
        }
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys |= {
        "feed_forward_length": config.intermediate_size,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
    }
    if config.model_type != "qwen2":
        keys |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    return keys | ({} if config.model_type == "qwen3" else {"rope.dimension_count": head_dim})


def arrange(name: str, value: np.ndarray[Any, Any], config: PretrainedConfig) -> np.ndarray[Any, Any]:
    """A tensor as the converter stores it: [out, in], and Llama's rotary pairs side by side."""
    if config.model_type == "gpt2" and ".c_" in name and value.ndim == 2:
        return np.ascontiguousarray(value.T)
    if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
    return value


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", ROWS)
def test_a_file_is_what_transformers_reads_and_the_folder_it_was_made_of(tmp_path: Path, name: str, tied: bool) -> None:
    folder = save(tmp_path / "folder", name, tie_word_embeddings=tied, **ROWS[name])
    file = write(tmp_path / "model.gguf", folder, name)
    model, of_folder = (load_model(source, device=CPU, max_length=64) for source in (file, folder))
    assert model.architecture == name
    assert model.spec.head.tied == of_folder.spec.head.tied == tied
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    ids = texts(23, 9)
    hidden = Decoding(model, 2).read(ids)
    for text, ours, other in zip(ids, hidden, Decoding(of_folder, 2).read(ids), strict=True):
        assert relative_error(model.logits(ours), of_folder.logits(other)) < 1e-6
        assert relative_error(model.logits(ours), reference(torch.tensor([text])).logits[0]) < TOLERANCE
