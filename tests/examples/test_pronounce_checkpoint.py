"""The committed pronounce checkpoint: small, a Hugging Face folder like any other, and good at its task."""

import importlib.util
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "pronounce"
CHECKPOINT = EXAMPLE / "checkpoint"
MOST_BYTES = 3_000_000
LEAST_ACCURACY = 0.5


@pytest.fixture(scope="module")
def training():
    spec = importlib.util.spec_from_file_location("pronounce_train", EXAMPLE / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def words(training):
    return training.load_words()


def test_folder_is_complete_and_small():
    files = {path.name: path.stat().st_size for path in CHECKPOINT.iterdir()}
    needed = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert needed == set(files)
    assert sum(files.values()) <= MOST_BYTES


def test_architecture_is_t5_with_gated_gelu_and_relative_bias():
    config = AutoConfig.from_pretrained(CHECKPOINT)
    assert (config.model_type, config.feed_forward_proj) == ("t5", "gated-gelu")
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as weights:
        assert sum("relative_attention_bias" in name for name in weights.keys()) == 2  # noqa: SIM118 - not a dict


def test_tokenizer_reads_letters_and_writes_phonemes_without_transformers():
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    assert tokenizer.encode("hello").tokens == [*"hello", "</s>"]
    assert tokenizer.encode(" O'Neill's").tokens == [*"o'neill's", "</s>"]
    assert tokenizer.encode("Café 7").tokens == [*"cafe", "<unk>", "<unk>", "</s>"]
    phonemes = "HH AH0 L OW1"
    ids = [tokenizer.token_to_id(token) for token in ["<pad>", *phonemes.split(), "</s>"]]
    assert None not in ids
    assert tokenizer.decode(ids) == phonemes


def test_held_out_words_are_the_same_whatever_the_order_and_size_of_the_dictionary(training, words):
    held_out = training.held_out_words(words)
    assert len(set(held_out)) == training.HELD_OUT_WORDS == 1000
    backwards = dict(reversed(words.items()))
    assert training.held_out_words(backwards) == held_out
    fewer = {word: spoken for word, spoken in words.items() if word in set(held_out) or word.startswith("b")}
    assert training.held_out_words(fewer) == held_out


def test_at_least_half_of_the_held_out_words_are_right(training, record_property):
    accuracy = training.evaluate(CHECKPOINT)
    record_property("accuracy", accuracy)
    assert accuracy >= LEAST_ACCURACY


def test_training_lowers_the_loss(training, words):
    tokenizer = training.build_tokenizer(words)
    model = training.build_model(len(tokenizer))
    pairs = training.encode_pairs(words, [word for word in words if word.startswith("zi")], tokenizer)
    losses = list(training.fit(model, pairs, epochs=3, batch_size=32, learning_rate=3e-3, bfloat16=False))
    assert len(losses) == 3
    assert losses[2] < 0.8 * losses[0]
