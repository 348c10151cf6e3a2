"""How each kind of tokenizer is made where a checkpoint has no tokenizer.json, as transformers 5 makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

from tercet.server.text.vocabularies import pieces
from tercet.server.text.vocabularies.builders import QWEN_SPLIT
from tercet.server.text.vocabularies.files import (
    around,
    by_flags,
    byte_level_files,
    like_roberta,
    lowercase_bpe_files,
    pieces_ended,
    pieces_told,
    told,
    wordpiece_files,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tercet.server.text.tokenizer import Backend
    from tercet.server.text.vocabularies.files import Parts


@dataclass(frozen=True)
class Kind:
    """One way of making a tokenizer from vocabulary files."""

    files: tuple[str, ...]
    tokens: Mapping[str, str | AddedToken]
    """The special tokens where the checkpoint's files name no others."""
    build: Callable[[Parts], Backend]
    finish: Callable[[Any, Parts], None]
    """What puts special tokens around texts, once they are in the vocabulary."""
    build_target: Callable[[Parts], Backend] | None = None
    """What tokenizes targets where that is not what tokenizes sources."""


_BERT = Kind(
    files=("vocab.txt",),
    tokens={
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
    build=wordpiece_files,
    finish=around("cls_token $A sep_token", "cls_token $A sep_token $B:1 sep_token:1"),
)
_BPE_FILES = ("vocab.json", "merges.txt")
_FAIRSEQ_FILES = ("sentencepiece.bpe.model",)
_FAIRSEQ = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
_FAIRSEQ_MASK = {**_FAIRSEQ, "mask_token": AddedToken("<mask>", lstrip=True, special=True)}
_ENDED: dict[str, str] = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
_ROBERTA = Kind(files=_BPE_FILES, tokens=_FAIRSEQ, build=byte_level_files(), finish=like_roberta)

# By the class that tokenizer_config.json names.
KINDS: dict[str, Kind] = {
    "BertTokenizer": _BERT,
    "DistilBertTokenizer": _BERT,
    "ElectraTokenizer": _BERT,
    "MPNetTokenizer": Kind(
        files=("vocab.txt",),
        tokens={
            **{name: AddedToken(token, special=True) for name, token in _FAIRSEQ.items()},
            "unk_token": AddedToken("[UNK]", special=True),
            "mask_token": AddedToken("<mask>", lstrip=True, special=True),
        },
        build=wordpiece_files,
        finish=like_roberta,
    ),
    "GPT2Tokenizer": Kind(files=_BPE_FILES, tokens=_ENDED, build=byte_level_files(), finish=by_flags),
    "GPTNeoXTokenizer": Kind(
        files=_BPE_FILES,
        tokens={**_ENDED, "pad_token": "<|padding|>"},
        build=byte_level_files(compose=True),
        finish=by_flags,
    ),
    "Qwen2Tokenizer": Kind(
        files=_BPE_FILES,
        tokens={"unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        build=byte_level_files(compose=True, split=QWEN_SPLIT),
        finish=by_flags,
    ),
    "RobertaTokenizer": _ROBERTA,
    "BartTokenizer": _ROBERTA,
    "OpenAIGPTTokenizer": Kind(
        files=_BPE_FILES, tokens={"unk_token": "<unk>"}, build=lowercase_bpe_files, finish=by_flags
    ),
    "T5Tokenizer": Kind(
        files=("spiece.model",),
        tokens={"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        build=pieces.t5,
        finish=around("$A eos_token", "$A eos_token $B eos_token"),
    ),
    "PegasusTokenizer": Kind(
        files=("spiece.model",),
        tokens={"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask_2>"},
        build=pieces.pegasus,
        finish=around("$A eos_token", "$A $B eos_token"),
    ),
    "XLMRobertaTokenizer": Kind(
        files=_FAIRSEQ_FILES,
        tokens=_FAIRSEQ,
        build=pieces.xlm_roberta,
        finish=around("bos_token $A eos_token", "bos_token $A eos_token eos_token $B eos_token"),
    ),
    "CamembertTokenizer": Kind(
        files=_FAIRSEQ_FILES,
        tokens=_FAIRSEQ_MASK,
        build=pieces.camembert,
        finish=around("bos_token $A eos_token", "bos_token $A eos_token eos_token $B eos_token"),
    ),
    "MBartTokenizer": Kind(
        files=_FAIRSEQ_FILES,
        tokens=_FAIRSEQ_MASK,
        build=pieces.mbart,
        finish=told("en_XX", suffix=True),
    ),
    "MBart50Tokenizer": Kind(
        files=_FAIRSEQ_FILES,
        tokens=_FAIRSEQ_MASK,
        build=pieces.mbart50,
        finish=told("en_XX"),
    ),
    "NllbTokenizer": Kind(
        files=_FAIRSEQ_FILES,
        tokens={**_FAIRSEQ, "mask_token": AddedToken("<mask>", lstrip=True, normalized=True, special=True)},
        build=pieces.nllb,
        finish=told("eng_Latn"),
    ),
    "M2M100Tokenizer": Kind(
        files=("vocab.json", "sentencepiece.bpe.model"),
        tokens={
            "bos_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
        },
        build=pieces.m2m100,
        finish=pieces_told,
    ),
    "MarianTokenizer": Kind(
        files=("source.spm", "vocab.json", "target.spm"),
        tokens={"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        build=pieces.marian,
        finish=pieces_ended,
        build_target=pieces.marian_target,
    ),
    "LlamaTokenizer": Kind(
        files=("tokenizer.model",),
        tokens={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        build=pieces.llama,
        finish=by_flags,
    ),
}

# Where no class is named: by config.json's model_type.
CLASSES = {
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "electra": "ElectraTokenizer",
    "mpnet": "MPNetTokenizer",
    "gpt2": "GPT2Tokenizer",
    "gpt_neo": "GPT2Tokenizer",
    "opt": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "bart": "BartTokenizer",
    "openai-gpt": "OpenAIGPTTokenizer",
    "t5": "T5Tokenizer",
    "mt5": "T5Tokenizer",
    "umt5": "T5Tokenizer",
    "pegasus": "PegasusTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "mbart": "MBartTokenizer",
    "mbart50": "MBart50Tokenizer",
    "m2m_100": "M2M100Tokenizer",
    "marian": "MarianTokenizer",
    "llama": "LlamaTokenizer",
    "mistral": "LlamaTokenizer",
}
