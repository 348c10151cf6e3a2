"""What checkpoints say about generating and embedding, and files that say it wrongly."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, GenerationConfig

from support import packaged
from support.checkpoints import tiny_llama, tiny_t5
from tercet.server.text import CheckpointTextError, EmbeddingDefaults, GenerationDefaults, load_text_model

MEAN = {"pooling_mode": "mean"}


def write(folder: Path, **files: Any) -> Path:
    """`generation_config={...}` writes generation_config.json."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_what_generation_config_states(tmp_path: Path) -> None:
    stated = {
        "do_sample": True, "temperature": 0.6, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1,
        "max_new_tokens": 7, "min_new_tokens": 2, "max_length": 99, "eos_token_id": [3, 5], "bos_token_id": 1,
    }  # fmt: skip
    ours = GenerationDefaults.from_folder(write(tmp_path, config={"eos_token_id": 9}, generation_config=stated))
    reference = GenerationConfig.from_pretrained(tmp_path)
    for key in (
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "max_new_tokens",
        "min_new_tokens",
    ):
        assert getattr(ours, key) == getattr(reference, key)
    assert list(ours.eos_ids) == reference.eos_token_id
    assert ours.new_tokens(50) == 7
    assert ours.decoder_start_ids == ()


def test_an_empty_config_is_neutral(tmp_path: Path) -> None:
    neutral = GenerationDefaults()
    assert GenerationDefaults.from_folder(tmp_path) == neutral
    assert GenerationDefaults.from_folder(write(tmp_path, config={}, generation_config={"top_k": None})) == neutral
    assert not neutral.do_sample
    assert (neutral.top_k, neutral.top_p, neutral.min_p, neutral.repetition_penalty) == (0, 1, 0, 1)
    assert neutral.new_tokens(10) is None


def test_greedy_whatever_the_temperature(tmp_path: Path) -> None:
    """As transformers: a checkpoint that does not ask for sampling is greedy, even where it states a temperature."""
    ours = GenerationDefaults.from_folder(write(tmp_path, generation_config={"temperature": 0.7, "top_p": 0.9}))
    assert not ours.do_sample
    assert (ours.temperature, ours.top_p) == (0.7, 0.9)


def test_config_states_token_ids_and_no_more(tmp_path: Path) -> None:
    """As transformers, which drops the other keys that old files have there."""
    config = {
        "model_type": "t5",
        "eos_token_id": [4, 5],
        "decoder_start_token_id": 3,
        "max_length": 30,
        "do_sample": True,
    }
    ours = GenerationDefaults.from_folder(write(tmp_path, config=config))
    reference = GenerationConfig.from_model_config(AutoConfig.from_pretrained(tmp_path))
    assert list(ours.eos_ids) == reference.eos_token_id == [4, 5]
    assert ours.decoder_start_ids == (reference.decoder_start_token_id,) == (3,)
    assert (ours.max_length, ours.do_sample) == (reference.max_length, bool(reference.do_sample)) == (None, False)


def test_token_ids_that_generation_config_leaves_out(tmp_path: Path) -> None:
    """A checkpoint without an end would never stop."""
    write(tmp_path, config={"eos_token_id": 4}, generation_config={"top_k": 3})
    assert GenerationDefaults.from_folder(tmp_path) == GenerationDefaults(top_k=3, eos_ids=(4,))


def test_max_length_counts_the_prompt() -> None:
    ours = GenerationDefaults(max_length=20)
    assert [ours.new_tokens(length) for length in (1, 19, 20, 500)] == [19, 1, 1, 1]
    assert GenerationDefaults(max_length=20, max_new_tokens=5).new_tokens(19) == 5


def test_min_length_counts_the_prompt(tmp_path: Path) -> None:
    ours = GenerationDefaults.from_folder(write(tmp_path, generation_config={"min_length": 9}))
    assert [ours.after(length).min_new_tokens for length in (1, 8, 9, 50)] == [8, 1, 0, 0]
    assert GenerationDefaults(min_length=9, min_new_tokens=3).after(1).min_new_tokens == 3


def test_what_is_not_supported_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    neutral = {"num_beams": 1, "no_repeat_ngram_size": 0, "suppress_tokens": [], "forced_eos_token_id": None}
    GenerationDefaults.from_folder(write(tmp_path, generation_config=neutral))
    assert not caplog.messages
    asked = {"num_beams": 4, "no_repeat_ngram_size": 3, "suppress_tokens": [5], "forced_eos_token_id": 0}
    GenerationDefaults.from_folder(write(tmp_path, generation_config=asked))
    file = tmp_path / "generation_config.json"
    assert caplog.messages == [f"{file}: {key} is not supported and is ignored" for key in asked]


@pytest.mark.parametrize(
    ("config", "generation", "start"),
    [
        ({"model_type": "t5", "decoder_start_token_id": 7}, {}, (7,)),
        ({"model_type": "t5", "decoder_start_token_id": 7}, {"decoder_start_token_id": 8}, (8,)),
        ({"model_type": "t5", "pad_token_id": 6}, {}, (6,)),
        ({"model_type": "t5"}, {}, (0,)),
        ({"model_type": "bart", "is_encoder_decoder": True, "bos_token_id": 2}, {}, (2,)),
        (
            {"model_type": "bart", "is_encoder_decoder": True},
            {"bos_token_id": 3, "decoder_start_token_id": [4, 5]},
            (4, 5),
        ),
        ({"model_type": "gpt2", "decoder_start_token_id": 7, "bos_token_id": 1}, {}, ()),
    ],
    ids=str,
)
def test_where_a_decoder_starts(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any], start: tuple[int, ...]
) -> None:
    write(tmp_path, config=config, generation_config=generation)
    assert GenerationDefaults.from_folder(tmp_path).decoder_start_ids == start


def test_checkpoints_that_transformers_saved(tmp_path: Path) -> None:
    for make in (tiny_llama, tiny_t5):
        folder = make(tmp_path / make.__name__)
        ours, reference = load_text_model(folder), GenerationConfig.from_pretrained(folder)
        assert ours.generation.eos_ids == (reference.eos_token_id,)
        start = reference.decoder_start_token_id
        assert ours.generation.decoder_start_ids == (() if start is None else (start,))
        assert ours.tokenizer.encode("the quick").ids


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("temperature", -0.1, "must be a number from 0 to 100, is -0.1"),
        ("temperature", 1e9, "must be a number from 0 to 100"),
        ("temperature", math.nan, "must be a number from 0 to 100, is nan"),
        ("temperature", "hot", "must be a number from 0 to 100, is 'hot'"),
        ("temperature", True, "must be a number from 0 to 100, is True"),
        ("temperature", 10**400, "must be a number from 0 to 100, is 1000"),
        ("temperature", math.inf, "must be a number from 0 to 100, is inf"),
        ("min_length", -1, "must be an integer from 0"),
        ("top_k", -1, "must be an integer from 0"),
        ("top_k", 1.5, "must be an integer from 0 to 2147483647, is 1.5"),
        ("top_p", 0, "must be a number above 0 to 1, is 0"),
        ("top_p", 1.01, "must be a number above 0 to 1, is 1.01"),
        ("min_p", 2, "must be a number from 0 to 1, is 2"),
        ("repetition_penalty", 0, "must be a number above 0 to 100, is 0"),
        ("max_new_tokens", 0, "must be an integer from 1"),
        ("max_new_tokens", 1 << 40, "must be an integer from 1 to 2147483647"),
        ("min_new_tokens", -1, "must be an integer from 0"),
        ("max_length", 0, "must be an integer from 1"),
        ("do_sample", "no", "must be true or false, is 'no'"),
        ("eos_token_id", -1, "must be a token id or a list of them, is -1"),
        ("eos_token_id", ["</s>"], "must be a token id or a list of them"),
        ("eos_token_id", "x" * 500, r"is 'x+\.\.\."),
    ],
)
def test_a_value_out_of_range_is_named(tmp_path: Path, key: str, value: object, message: str) -> None:
    write(tmp_path, generation_config={key: value})
    with pytest.raises(CheckpointTextError, match=rf"generation_config\.json: {key}: .*{message}") as caught:
        GenerationDefaults.from_folder(tmp_path)
    assert len(str(caught.value)) < len(str(tmp_path)) + 250


def test_the_real_sentence_transformer() -> None:
    model = load_text_model(packaged.minilm())
    assert model.embedding == EmbeddingDefaults(pooling="mean", normalize=True, max_length=256)
    assert not model.chat_template


def sentence_transformer(folder: Path, pooling: object, *kinds: str, **sentence: Any) -> Path:
    kinds = kinds or ("Transformer", "Pooling")
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    modules = [
        {"idx": i, "name": str(i), "path": paths.get(k, f"{i}_{k}"), "type": f"sentence_transformers.models.{k}"}
        for i, k in enumerate(kinds)
    ]
    (folder / "1_Pooling").mkdir()
    write(folder / "1_Pooling", config=pooling)
    return write(folder, modules=modules, sentence_bert_config=sentence)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "include_prompt": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_max_tokens": True, "word_embedding_dimension": 8}, "max"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
    ids=str,
)
def test_pooling(tmp_path: Path, pooling: dict[str, Any], expected: str) -> None:
    folder = sentence_transformer(tmp_path, pooling)
    assert EmbeddingDefaults.from_folder(folder, 512) == EmbeddingDefaults(
        pooling=expected, normalize=False, max_length=512
    )


def test_normalised_with_its_own_limit(tmp_path: Path) -> None:
    folder = sentence_transformer(
        tmp_path, {"pooling_mode": "mean"}, "Transformer", "Pooling", "Normalize", max_seq_length=64, do_lower_case=True
    )
    assert EmbeddingDefaults.from_folder(folder, 512) == EmbeddingDefaults(
        pooling="mean", normalize=True, max_length=64, lowercase=True
    )


def test_without_sentence_transformers_files(tmp_path: Path) -> None:
    assert EmbeddingDefaults.from_folder(tmp_path, None) == EmbeddingDefaults(pooling="mean", normalize=True)
    assert EmbeddingDefaults.from_folder(tmp_path, 512).max_length == 512


@pytest.mark.parametrize(
    ("pooling", "kinds", "sentence", "message"),
    [
        ({"pooling_mode": "weightedmean"}, (), {}, "pooling_mode: must be one of .*, is 'weightedmean'"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, (), {}, "pooling_mode: exactly one of"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, (), {}, "exactly one of .* must be true"),
        ({}, (), {}, r"1_Pooling/config\.json: pooling_mode: exactly one of"),
        ({"pooling_mode_mean_tokens": "x"}, (), {}, "pooling_mode_mean_tokens: must be true or false"),
        (MEAN, ("Transformer", "Pooling", "Dense"), {}, r"modules\.json: \[2\]\.type: must be .*, is 'Dense'"),
        (MEAN, (), {"max_seq_length": 0}, r"sentence_bert_config\.json: max_seq_length: must be an"),
        (MEAN, (), {"do_lower_case": 1}, "do_lower_case: must be true or false, is 1"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_module_is_named(
    tmp_path: Path, pooling: dict[str, Any], kinds: tuple[str, ...], sentence: dict[str, Any], message: str
) -> None:
    folder = sentence_transformer(tmp_path, pooling, *kinds, **sentence)
    with pytest.raises(CheckpointTextError, match=message):
        EmbeddingDefaults.from_folder(folder, 512)


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "a/../../b"])
def test_modules_stay_in_the_folder(tmp_path: Path, path: str) -> None:
    write(tmp_path, modules=[{"type": "sentence_transformers.models.Pooling", "path": path}])
    with pytest.raises(CheckpointTextError, match=r"modules\.json: \[0\]\.path: must lie in the checkpoint's folder"):
        EmbeddingDefaults.from_folder(tmp_path, None)


@pytest.mark.parametrize("modules", [{}, "x", [5], [{"type": 5}]], ids=str)
def test_modules_of_the_wrong_shape(tmp_path: Path, modules: object) -> None:
    write(tmp_path, modules=modules)
    with pytest.raises(CheckpointTextError, match=r"modules\.json: "):
        EmbeddingDefaults.from_folder(tmp_path, None)
