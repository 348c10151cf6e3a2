"""Checkpoints whose text names tokens that the model lacks."""

import json
from pathlib import Path
from typing import Any

import pytest

from support import packaged
from support.checkpoints import VOCAB_SIZE, tiny_llama, tiny_t5
from tercet.server.text import CheckpointTextError, load_text_model


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_checkpoints_agree_with_themselves(tmp_path: Path) -> None:
    load_text_model(tiny_llama(tmp_path / "llama")).check_vocabulary(VOCAB_SIZE, seq2seq=False)
    load_text_model(tiny_t5(tmp_path / "t5")).check_vocabulary(VOCAB_SIZE, seq2seq=True)
    load_text_model(packaged.minilm()).check_vocabulary(30522, seq2seq=False)
    load_text_model(packaged.smollm2()).check_vocabulary(49152, seq2seq=False)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("generation_config.json", {"eos_token_id": [1, VOCAB_SIZE]}, f"eos_token_id: is {VOCAB_SIZE}, the model has"),
        ("config.json", {"decoder_start_token_id": 1 << 30}, "decoder_start_token_id: is 1073741824, the model has"),
        ("config.json", {"pad_token_id": VOCAB_SIZE, "decoder_start_token_id": None}, "pad_token_id: is "),
        ("config.json", {"model_type": "other", "decoder_start_token_id": None}, "decoder_start_token_id: missing"),
    ],
    ids=str,
)
def test_an_id_that_the_model_lacks_is_named(tmp_path: Path, file: str, values: dict[str, Any], message: str) -> None:
    folder = tiny_t5(tmp_path)
    change(folder / "generation_config.json", decoder_start_token_id=None)
    change(folder / file, **values)
    model = load_text_model(folder)
    with pytest.raises(CheckpointTextError, match=message) as caught:
        model.check_vocabulary(VOCAB_SIZE, seq2seq=True)
    assert caught.value.file == folder / file


def test_ids_that_are_written_are_of_the_target(tmp_path: Path) -> None:
    folder = tiny_t5(tmp_path)
    change(folder / "generation_config.json", eos_token_id=VOCAB_SIZE)
    model = load_text_model(folder)
    model.check_vocabulary(VOCAB_SIZE, target_vocab_size=VOCAB_SIZE + 1, seq2seq=True)
    with pytest.raises(CheckpointTextError, match=f"eos_token_id: is {VOCAB_SIZE}, the model has {VOCAB_SIZE} tokens"):
        model.check_vocabulary(VOCAB_SIZE + 1, target_vocab_size=VOCAB_SIZE, seq2seq=True)


def test_a_tokenizer_larger_than_the_model_is_named(tmp_path: Path) -> None:
    model = load_text_model(tiny_llama(tmp_path))
    words = rf"tokenizer\.json: has token id {VOCAB_SIZE - 1}, the model has {VOCAB_SIZE - 1} tokens"
    with pytest.raises(CheckpointTextError, match=words):
        model.check_vocabulary(VOCAB_SIZE - 1, seq2seq=False)
    gguf = load_text_model(packaged.smollm2())
    with pytest.raises(
        CheckpointTextError, match=r"\.gguf: tokenizer\.ggml\.tokens: has token id 49151, the model has 9 "
    ):
        gguf.check_vocabulary(9, seq2seq=False)
