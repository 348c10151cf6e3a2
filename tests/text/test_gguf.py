"""Tokenizers in GGUF files: made by the gguf library, against transformers'; and files that are wrong."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from gguf import GGUFWriter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from support import packaged
from support.texts import texts
from tercet.server.text import CheckpointTextError, load_text_model

TEXTS = texts(500, seed=2)
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
CONTROLS = ("<|endoftext|>", "<|start|>", "<|end|>", "<|错|>")  # the last is not written in the byte alphabet
OWN = ("<think>", "two words")


@pytest.fixture(scope="module")
def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens by id, and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=700, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text * 3 for text in TEXTS] + ["12345 2024 100 99", "we've don't"] * 9, trainer)
    merges = json.loads(tokenizer.model.__getstate__())["merges"]
    tokens = tokenizer.get_vocab()
    return sorted(tokens, key=tokens.__getitem__), [" ".join(merge) for merge in merges]


def write(file: Path, vocabulary: tuple[list[str], list[str]], **keys: Any) -> Path:
    """A GGUF file without tensors. `keys` replace metadata, by the part after the last dot; None leaves one out."""
    tokens, merges = vocabulary
    every = [*CONTROLS, *OWN, *tokens]
    metadata: dict[str, Any] = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": every,
        "token_type": [CONTROL] * len(CONTROLS) + [USER_DEFINED] * len(OWN) + [NORMAL] * len(tokens),
        "merges": merges,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "padding_token_id": 2,
    } | keys
    writer = GGUFWriter(file, "llama")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length"):
        writer.add_uint32(f"llama.{key}", 8)
    writer.add_uint32("llama.attention.head_count", 2)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
        if value is not None:
            add[type(value)](f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"pre": "gpt-2"},
        {"pre": "llama-bpe"},
        {"pre": "qwen2"},
        {"pre": "tekken"},
        {"pre": "deepseek-r1-qwen"},
        {"add_bos_token": True},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False},
        {"bos_token_id": None, "padding_token_id": None},
        {"token_type": None},
    ],
    ids=str,
)
def test_equal_to_transformers(tmp_path: Path, vocabulary: tuple[list[str], list[str]], keys: dict[str, Any]) -> None:
    file = write(tmp_path / "model.gguf", vocabulary, **keys)
    ours, reference = load_text_model(file).tokenizer, AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    assert_equal(ours, reference)


def assert_equal(ours: Any, reference: Any) -> None:
    assert ours.vocab_size == len(reference)
    for text, encoded in zip(TEXTS, ours.encode_batch(TEXTS, spans=True), strict=True):
        expected = reference(text, return_offsets_mapping=True)
        assert encoded.ids == expected["input_ids"], repr(text)
        assert list(zip(encoded.starts, encoded.ends, strict=True)) == expected["offset_mapping"], repr(text)
        for skip in (True, False):
            assert ours.decode(encoded.ids, skip) == reference.decode(encoded.ids, skip_special_tokens=skip), repr(text)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The metadata of a SentencePiece BPE, as llama.cpp writes it."""
    prefix = tmp_path_factory.mktemp("pieces") / "m"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text for text in TEXTS if text.isprintable() and text.strip()),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=800,
        byte_fallback=True,
        character_coverage=0.98,
        user_defined_symbols=["<tool>"],
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(f"{prefix}.model")
    count = range(model.vocab_size())
    kinds = [(model.is_unknown, 2), (model.is_control, CONTROL), (model.is_byte, 6)]
    return {
        "tokens": [model.id_to_piece(i) for i in count],
        "scores": [model.get_score(i) for i in count],
        "token_type": [
            4 if model.id_to_piece(i) == "<tool>" else next((kind for test, kind in kinds if test(i)), NORMAL)
            for i in count
        ],
    }


@pytest.mark.parametrize("keys", [{}, {"add_bos_token": False}, {"add_eos_token": True}, {"token_type": None}], ids=str)
def test_sentencepiece_equal_to_transformers(
    tmp_path: Path, pieces: dict[str, list[Any]], keys: dict[str, Any]
) -> None:
    metadata = {"model": "llama", "pre": "default", "merges": None, "unknown_token_id": 0, "bos_token_id": 1, **pieces}
    file = write(tmp_path / "model.gguf", ([], []), **(metadata | keys))
    ours, reference = load_text_model(file).tokenizer, AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    assert_equal(ours, reference)


def test_tokens_of_every_kind(tmp_path: Path, vocabulary: tuple[list[str], list[str]]) -> None:
    tokenizer = load_text_model(write(tmp_path / "model.gguf", vocabulary)).tokenizer
    assert tokenizer.special_ids == {0, 1, 2}
    ids = tokenizer.encode("<|start|><think>a<|end|>").ids
    assert (ids[:2], ids[-1]) == ([1, 4], 2)
    assert tokenizer.decode(ids) == "<think>a"
    assert tokenizer.vocab_size == len(CONTROLS) + len(OWN) + len(vocabulary[0])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": "bert"}, r"model: must be 'gpt2' \(byte-level BPE\) or 'llama' \(SentencePiece\), is 'bert'"),
        ({"model": None}, r"tokenizer\.ggml\.model: must be .*, is None"),
        ({"model": "llama", "merges": None}, r"tokenizer\.ggml\.scores: must be a list of \d+ numbers where"),
        (
            {"model": "llama", "merges": None, "scores": [0.5]},
            r"tokenizer\.ggml\.scores: must be a list of \d+ numbers",
        ),
        ({"pre": "elvish"}, r"tokenizer\.ggml\.pre: must be one of .*, is 'elvish'"),
        ({"tokens": None}, r"tokenizer\.ggml\.tokens: missing"),
        ({"tokens": [1, 2]}, r"tokenizer\.ggml\.tokens: must be a list of strings"),
        ({"merges": None}, r"tokenizer\.ggml\.merges: missing"),
        ({"merges": ["a b c"]}, r"tokenizer\.ggml\.merges: 'a b c' is not a pair of tokens"),
        ({"merges": ["a"]}, r"tokenizer\.ggml\.merges: 'a' is not a pair of tokens"),
        (
            {"merges": ["a nowhere"]},
            r"tokenizer\.ggml\.merges: not a usable tokenizer: .*Token `nowhere` out of vocabulary",
        ),
        ({"eos_token_id": 9999}, r"tokenizer\.ggml\.eos_token_id: must be an integer from 0 to \d+, is 9999"),
        ({"eos_token_id": "2"}, r"tokenizer\.ggml\.eos_token_id: must be an integer"),
        ({"token_type": [1, 2]}, r"tokenizer\.ggml\.token_type: must be a list of \d+ token types"),
        ({"add_bos_token": 1}, r"tokenizer\.ggml\.add_bos_token: must be true or false, is 1"),
    ],
    ids=str,
)
def test_metadata_that_contradicts_itself(
    tmp_path: Path, vocabulary: tuple[list[str], list[str]], keys: dict[str, Any], message: str
) -> None:
    file = write(tmp_path / "model.gguf", vocabulary, **keys)
    with pytest.raises(CheckpointTextError, match=message) as caught:
        load_text_model(file)
    assert str(file) in str(caught.value)


def test_a_file_cut_anywhere(tmp_path: Path) -> None:
    """Whatever byte it ends at, inside the metadata, it is said to be cut short; past them it is whole."""
    data = write(tmp_path / "whole.gguf", (["a", "b", "ab"], ["a b"])).read_bytes()
    file = tmp_path / "model.gguf"
    file.write_bytes(data)
    load_text_model(file)
    for end in range(len(data) - 32):  # the last 32 may be padding
        file.write_bytes(data[:end])
        with pytest.raises(CheckpointTextError, match=r"model\.gguf: "):
            load_text_model(file)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


HEADER = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04" + bytes(64), "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1 is not one of"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), "1099511627776 metadata keys exceed the limit of 65536"),
        (HEADER + struct.pack("<Q", 1 << 62), "the file ends at byte 32, inside the metadata"),
        (HEADER + string(b"k") + struct.pack("<I", 99), "k: unknown value type 99"),
        (HEADER + string(b"k") + struct.pack("<IIQ", 9, 9, 1), "k: unknown value type 9"),
        (HEADER + string(b"k") + struct.pack("<IIQ", 9, 8, 1 << 60), "k: the file ends at byte 49"),
        (HEADER + string(b"k") + struct.pack("<IIQ", 9, 4, 1 << 60), "k: the file ends at byte 49"),
        (HEADER + string(b"k") + struct.pack("<I", 8) + string(b"\xff"), "k: string 0 is not UTF-8"),
        (HEADER + string(b"\xff") + struct.pack("<I", 8) + string(b"a"), "string 0 is not UTF-8"),
    ],
    ids=str,
)
def test_a_file_that_is_no_gguf(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(data)
    with pytest.raises(CheckpointTextError, match=message) as caught:
        load_text_model(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointTextError, match="does not exist"):
        load_text_model(tmp_path / "model.gguf")


def test_defaults_of_the_real_file() -> None:
    model = load_text_model(packaged.smollm2())
    assert model.generation.eos_ids == (2,)
    assert not model.generation.do_sample
    assert model.chat_template
