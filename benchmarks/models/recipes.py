"""Models of real configurations with random weights, for speed alone: nothing is downloaded."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.limits import Stack

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping


@dataclass(frozen=True)
class Recipe:
    """A class of transformers, its configuration, and what its stacks multiply by."""

    model: str
    options: Mapping[str, Any]
    """What differs from the configuration's own defaults."""
    stack: Stack
    """Of a seq2seq model, its decoder's."""
    small: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What a rehearsal changes."""

    def rehearsed(self) -> Recipe:
        """The same model in small."""
        return replace(self, options={**self.options, **self.small})

    def built(self, device: str, dtype: torch.dtype) -> Any:
        """The model with random weights of a seed."""
        import transformers

        transformers.utils.logging.disable_progress_bar()
        kind: Any = getattr(transformers, self.model)
        torch.manual_seed(0)
        with torch.device(device):
            model = kind(kind.config_class(**self.options))
        return model.to(dtype).eval()


@contextmanager
def saved(model: Any) -> Generator[Path]:
    """A folder with the model's checkpoint, until the end."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        yield Path(folder)


_TINY = {"vocab_size": 120, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
_TINY_LLAMA = {
    **_TINY, "num_key_value_heads": 1, "intermediate_size": 48, "head_dim": 16, "max_position_embeddings": 128,
}  # fmt: skip
_NO_END = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}

BERT_BASE = Recipe(
    "BertModel", {}, Stack(12, 768, 3072, 12, 12, 64),
    small={**_TINY, "intermediate_size": 64, "max_position_embeddings": 64},
)  # fmt: skip
MINILM = Recipe(
    "BertModel",
    {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    Stack(6, 384, 1536, 12, 12, 32),
    small={**_TINY, "intermediate_size": 64, "max_position_embeddings": 64},
)
GPT2 = Recipe(
    "GPT2LMHeadModel", _NO_END, Stack(12, 768, 3072, 12, 12, 64, vocabulary=50257),
    small={"vocab_size": 120, "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64},
)  # fmt: skip
LLAMA_160M = Recipe(
    "LlamaForCausalLM",
    {
        **_NO_END, "vocab_size": 32000, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "max_position_embeddings": 2048,
    },
    Stack(12, 768, 3072, 12, 12, 64, vocabulary=32000, gated=True),
    small=_TINY_LLAMA,
)  # fmt: skip
LLAMA_1B = Recipe(
    "LlamaForCausalLM",
    {
        **_NO_END, "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 8192, "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    Stack(16, 2048, 8192, 32, 8, 64, vocabulary=128256, gated=True),
    small=_TINY_LLAMA,
)  # fmt: skip
QWEN3_06B = Recipe(
    "Qwen3ForCausalLM",
    {
        **_NO_END, "vocab_size": 151936, "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    Stack(28, 1024, 3072, 16, 8, 128, vocabulary=151936, gated=True),
    small=_TINY_LLAMA,
)  # fmt: skip
MARIAN = Recipe(
    "MarianMTModel",
    {
        "vocab_size": 58101, "decoder_vocab_size": 58101, "d_model": 512, "encoder_layers": 6, "decoder_layers": 6,
        "encoder_attention_heads": 8, "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048,
        "max_position_embeddings": 512, "activation_function": "swish", "scale_embedding": True, "pad_token_id": 58100,
        "eos_token_id": 0, "forced_eos_token_id": None, "decoder_start_token_id": 58100,
    },
    Stack(6, 512, 2048, 8, 8, 64, vocabulary=58101, crosses=True),
    small={
        "vocab_size": 120, "decoder_vocab_size": 120, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "max_position_embeddings": 64, "pad_token_id": 119, "decoder_start_token_id": 119,
    },
)  # fmt: skip
T5_BASE = Recipe(
    "T5ForConditionalGeneration",
    {
        "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128, "pad_token_id": 0,
        "eos_token_id": 1, "decoder_start_token_id": 0,
    },
    Stack(12, 768, 3072, 12, 12, 64, vocabulary=32128, crosses=True),
    small={"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "vocab_size": 120},
)  # fmt: skip
