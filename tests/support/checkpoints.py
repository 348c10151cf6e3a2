"""Tiny random checkpoints with tokenizers, saved by transformers, for the tests of every part.

Every tensor is refilled: with transformers' own initialisation biases are zero and attention is all but uniform, so a
model that ignores them would pass.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from support.architectures import DECODERS, ENCODERS, LABELS, ROWS, VOCAB_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformers import PreTrainedModel

CORPUS = (
    "the quick brown fox jumps over the lazy dog and runs away from the small house",
    "once upon a time there was a river that sang to the stones at night",
    "encoders read, decoders write, and a cross attention joins the two of them",
    "a naïve café owner in Zürich counted 12345 coins, 67890 notes; then she slept",
)
AFTER_ACTIVATIONS = ("mlp.c_proj", "mlp.dense_4h_to_h", "fc2", "wo")
TIED = 0.3  # of the deviation of word embeddings
UNSCALED = ("t5", "mt5", "umt5", "gpt_neo")  # scores without 1 / sqrt(d)


def tiny_bert(folder: Path, *, seed: int | None = None, max_shard_size: str = "1GB", **config: Any) -> Path:
    """An encoder: 3 layers, 3 heads of 16, two token types, 96 positions."""
    return tiny(folder, "bert", seed=seed, max_shard_size=max_shard_size, **config)


def tiny_llama(folder: Path, *, seed: int | None = None, max_shard_size: str = "1GB", **config: Any) -> Path:
    """A decoder: 3 layers, 6 heads of 16 over 2 key heads, biases everywhere, 256 positions, an untied head."""
    return tiny(folder, "llama", seed=seed, max_shard_size=max_shard_size, **config)


def tiny_t5(folder: Path, *, seed: int | None = None, max_shard_size: str = "1GB", **config: Any) -> Path:
    """A seq2seq model: 3 encoder and 2 decoder layers, 3 heads of 16, biases to distance 20, gated GELU, tied head."""
    return tiny(folder, "t5", seed=seed, max_shard_size=max_shard_size, **config)


def tiny(
    folder: Path,
    row: str,
    head: str | None = None,
    *,
    seed: int | None = None,
    max_shard_size: str = "1GB",
    **config: Any,
) -> Path:
    """A row's architecture with one of its heads, else its first, and a tokenizer; `config` changes the row's."""
    save(folder, row, head, seed=seed, max_shard_size=max_shard_size, **config)
    _tokenizer(row).save_pretrained(folder)
    return folder


def save(
    folder: Path,
    row: str,
    head: str | None = None,
    *,
    seed: int | None = None,
    max_shard_size: str = "1GB",
    **config: Any,
) -> Path:
    """The same without a tokenizer."""
    model = build(row, head, **config)
    refill(model, ROWS[row].seed if seed is None else seed)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def save_for_texts(folder: Path, row: str, *, seed: int | None = None, **config: Any) -> Path:
    """A row's architecture with its first head, whose generated texts are varied; without a tokenizer."""
    model = build(row, **config)
    refill(model, ROWS[row].text_seed if seed is None else seed, ROWS[row].text_gains)
    model.save_pretrained(folder)
    return folder


def build(row: str, head: str | None = None, **config: Any) -> PreTrainedModel:
    """transformers' model of a row, as it initializes it."""
    head = head or ROWS[row].classes[0]
    kind = getattr(transformers, head)
    labels = {"num_labels": LABELS} if "Classification" in head else {}
    return kind(kind.config_class(**ROWS[row].config | labels | config))


def refill(model: PreTrainedModel, seed: int, gains: Mapping[str, float] | None = None) -> None:
    """Fills all that is stored with normals, so that attention is far from uniform and every tensor matters.

    `gains` multiply the deviations of the weights of modules by their names.

    What all tokens have in common stays small, or they would all lead to the same next one: biases, the mean of what
    activations let through, and with a tied head the part of a token in its own hidden state.
    """
    generator = torch.Generator().manual_seed(seed)
    scaled = model.config.model_type not in UNSCALED
    words = model.get_input_embeddings() if model.can_generate() and model.config.tie_word_embeddings else None
    with torch.no_grad():
        for name, tensor in stored(model).items():
            owner = _owner(model, name)
            mean, deviation = _distribution(name, tensor, owner, scaled=scaled)
            gain = (gains or {}).get(name.rpartition(".")[0].rpartition(".")[2], 1) if tensor.ndim > 1 else 1
            tensor.normal_(mean, deviation * gain * (TIED if owner is words else 1), generator=generator)
            if any(f".{last}." in name for last in AFTER_ACTIVATIONS):
                tensor.sub_(tensor.mean(dim=0 if isinstance(owner, Conv1D) else -1, keepdim=True))


def stored(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The parameters and buffers that make a difference in a file: tied ones once, and no sinusoids."""
    names = model.state_dict(keep_vars=True)
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in names]
    return {
        name: tensor
        for name, tensor in [*model.named_parameters(), *buffers]
        if tensor.is_floating_point() and "Sinusoidal" not in type(_owner(model, name)).__name__
    }


def _owner(model: PreTrainedModel, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _distribution(name: str, tensor: torch.Tensor, owner: nn.Module, *, scaled: bool) -> tuple[float, float]:
    """Mean and standard deviation; scores get a standard deviation of 4 with or without 1 / sqrt(d)."""
    if "Norm" in type(owner).__name__ and name.endswith("weight"):
        return 1, 0.3
    if tensor.ndim == 1 or 1 in tensor.shape[:-1]:
        return 0, 0.15
    if isinstance(owner, nn.Embedding):
        return 0, 2 if "relative_attention_bias" in name else 1
    inputs = tensor.shape[0] if isinstance(owner, Conv1D) else tensor.shape[1]
    queries_or_keys = name.split(".")[-2] in ("q", "k", "q_proj", "k_proj")
    return 0, (1 if queries_or_keys and not scaled else 2) / math.sqrt(inputs)


# Special tokens in the order of their ids, and what surrounds one text and two.
SPECIAL = {
    "encoder": {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"},
    "decoder": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
    "seq2seq": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
}
SURROUNDED = {
    "encoder": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "seq2seq": ("$A </s>", "$A </s> $B </s>"),
}


def _tokenizer(row: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE of VOCAB_SIZE tokens, so that any text has ids and any ids have a text."""
    family = "encoder" if row in ENCODERS else "decoder" if row in DECODERS else "seq2seq"
    special = SPECIAL[family]
    names = list(special.values())
    if row == "mpnet":  # its padding is token 1, whatever its config says
        names.insert(1, names.pop(names.index(special["pad_token"])))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=names, show_progress=False, min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise RuntimeError(f"the corpus gave {tokenizer.get_vocab_size()} tokens, not {VOCAB_SIZE}")
    if family in SURROUNDED:
        single, pair = SURROUNDED[family]
        ids = [(token, tokenizer.token_to_id(token)) for token in names]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
