"""Tiny random checkpoints with tokenizers, saved by transformers, for the tests of every part.

Every tensor is refilled: with transformers' own initialisation biases are zero and attention is all but uniform, so a
model that ignores them would pass.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

VOCAB_SIZE = 331  # odd on purpose; every id has a token
CORPUS = (
    "the quick brown fox jumps over the lazy dog and runs away from the small house",
    "once upon a time there was a river that sang to the stones at night",
    "encoders read, decoders write, and a cross attention joins the two of them",
    "a naïve café owner in Zürich counted 12345 coins, 67890 notes; then she slept",
)
SEED = 20


def tiny_bert(folder: Path, *, seed: int = SEED, max_shard_size: str = "1GB", **config: Any) -> Path:
    """An encoder: 3 layers, 3 heads of 16, two token types, 96 positions."""
    tokenizer = _tokenizer({"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"})
    _surround(tokenizer, "[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1")
    shape = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 88,
        "max_position_embeddings": 96,
        "type_vocab_size": 2,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return _save(BertModel(BertConfig(**shape | config)), tokenizer, folder, seed, max_shard_size)


def tiny_llama(folder: Path, *, seed: int = SEED, max_shard_size: str = "1GB", **config: Any) -> Path:
    """A decoder: 3 layers, 6 heads of 16 over 2 key heads, biases everywhere, 256 positions, an untied head."""
    tokenizer = _tokenizer({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    shape = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 72,
        "max_position_embeddings": 256,
        "attention_bias": True,
        "mlp_bias": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return _save(LlamaForCausalLM(LlamaConfig(**shape | config)), tokenizer, folder, seed, max_shard_size)


def tiny_t5(folder: Path, *, seed: int = SEED, max_shard_size: str = "1GB", **config: Any) -> Path:
    """A seq2seq model: 3 encoder and 2 decoder layers, 3 heads of 16, biases to distance 20, gated GELU, tied head."""
    tokenizer = _tokenizer({"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"})
    _surround(tokenizer, "$A </s>", pair="$A </s> $B </s>")
    shape = {
        "vocab_size": VOCAB_SIZE,
        "d_model": 40,
        "d_kv": 16,
        "d_ff": 72,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "num_heads": 3,
        "relative_attention_num_buckets": 10,
        "relative_attention_max_distance": 20,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return _save(T5ForConditionalGeneration(T5Config(**shape | config)), tokenizer, folder, seed, max_shard_size)


def refill(model: PreTrainedModel, seed: int) -> None:
    """Fills every parameter with normals, so that attention is far from uniform and every tensor matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, deviation = _distribution(name, parameter, scaled=model.config.model_type != "t5")
            parameter.normal_(mean, deviation, generator=generator)


def _distribution(name: str, parameter: torch.Tensor, *, scaled: bool) -> tuple[float, float]:
    """Mean and standard deviation; scores get a standard deviation of 4 with or without 1 / sqrt(d)."""
    if parameter.ndim == 1:
        return (1, 0.3) if "norm" in name.lower() and name.endswith("weight") else (0, 0.3)
    if "relative_attention_bias" in name:
        return 0, 2
    if "embed" in name or "shared" in name:
        return 0, 1
    queries_or_keys = any(part in name for part in ("query", "key", "q_proj", "k_proj", ".q.", ".k."))
    gain = 1 if queries_or_keys and not scaled else 2
    return 0, gain / math.sqrt(parameter.shape[1])


def _tokenizer(special: dict[str, str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of VOCAB_SIZE tokens, so that any text has ids and any ids have a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=list(special.values()), show_progress=False, min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise RuntimeError(f"the corpus gave {tokenizer.get_vocab_size()} tokens, not {VOCAB_SIZE}")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _surround(tokenizer: PreTrainedTokenizerFast, single: str, pair: str) -> None:
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in tokenizer.all_special_tokens]
    template = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    tokenizer.backend_tokenizer.post_processor = template


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int, max_shard_size: str
) -> Path:
    refill(model, seed)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return folder
