"""Tokenizers of Hugging Face folders, tokenizer.json or older, against transformers'."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from support import packaged
from support.texts import texts
from tercet.server.text import load_text_model

TEXTS = texts(400, seed=1)
CORPUS = [text for text in TEXTS if text.isprintable()]


def write(file: Path, value: object) -> None:
    file.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def assert_equal_to_transformers(folder: Path) -> None:
    ours, reference = load_text_model(folder).tokenizer, AutoTokenizer.from_pretrained(folder)
    assert ours.vocab_size == len(reference)
    for text, encoded in zip(TEXTS, ours.encode_batch(TEXTS, spans=True), strict=True):
        expected = reference(text, return_offsets_mapping=True)
        assert encoded.ids == expected["input_ids"], repr(text)
        assert list(zip(encoded.starts, encoded.ends, strict=True)) == expected["offset_mapping"], repr(text)
        for skip in (True, False):
            assert ours.decode(encoded.ids, skip) == reference.decode(encoded.ids, skip_special_tokens=skip), repr(text)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"strip_accents": False, "tokenize_chinese_chars": False},
        {"clean_up_tokenization_spaces": True},
        {"additional_special_tokens": ["Quick", "[unused1]"]},
        {"cls_token": "[unused2]", "sep_token": "[unused3]"},
    ],
    ids=str,
)
def test_wordpiece_vocabulary(tmp_path: Path, config: dict[str, Any]) -> None:
    write(tmp_path / "vocab.txt", (packaged.minilm() / "vocab.txt").read_text(encoding="utf-8"))
    write(tmp_path / "config.json", {"model_type": "bert"})
    write(tmp_path / "tokenizer_config.json", config)
    assert_equal_to_transformers(tmp_path)


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_prefix_space": True},
        {"add_bos_token": True, "add_eos_token": True},
        {"eos_token": {"__type": "AddedToken", "content": "<|end|>", "lstrip": True, "rstrip": True}},
        {"clean_up_tokenization_spaces": True},
    ],
    ids=str,
)
def test_byte_level_vocabulary(tmp_path: Path, byte_level: Tokenizer, config: dict[str, Any]) -> None:
    byte_level.model.save(str(tmp_path))
    write(tmp_path / "config.json", {"model_type": "gpt2"})
    write(tmp_path / "tokenizer_config.json", config)
    assert_equal_to_transformers(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"clean_up_tokenization_spaces": True},
        {
            "bos_token": "<s>",
            "eos_token": "the",
            "mask_token": "<mask>",
            "additional_special_tokens": ["Quick", "<new>"],
        },
        {
            "added_tokens_decoder": {
                "604": {"content": "<late>", "special": True},
                "602": {"content": "<tool>", "special": False},
            }
        },
        {"extra_special_tokens": {"image_token": "<image>"}},
    ],
    ids=str,
)
def test_tokenizer_json(tmp_path: Path, byte_level: Tokenizer, config: dict[str, Any]) -> None:
    file = Tokenizer.from_str(byte_level.to_str())
    file.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    file.add_tokens([AddedToken("<think>", special=False)])
    if "added_tokens_decoder" in config:
        file.add_tokens(["<tool>", "<between>"])
    file.enable_truncation(5)
    file.enable_padding(length=9)
    file.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **config})
    file.no_truncation()
    file.no_padding()
    ours = load_text_model(tmp_path).tokenizer
    file.save(str(tmp_path / "tokenizer.json"))
    assert_equal_to_transformers(tmp_path)
    assert [e.ids for e in ours.encode_batch(TEXTS)] == [
        e.ids for e in load_text_model(tmp_path).tokenizer.encode_batch(TEXTS)
    ]


def test_special_tokens_of_the_older_kind(tmp_path: Path, byte_level: Tokenizer) -> None:
    byte_level.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    write(
        tmp_path / "special_tokens_map.json", {"eos_token": {"content": "<end>", "lstrip": True}, "pad_token": "<pad>"}
    )
    assert_equal_to_transformers(tmp_path)
