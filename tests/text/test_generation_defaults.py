"""What checkpoints say about generating, and files that say it wrongly."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from support.checkpoints import tiny_llama, tiny_t5
from tercet.server.text import CheckpointTextError, GenerationDefaults, TaskDefaults, load_text_model


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


# What the fields are called in transformers, where it is something else.
REFERENCE = {
    "bad_words": "bad_words_ids",
    "suppressed_ids": "suppress_tokens",
    "first_suppressed_ids": "begin_suppress_tokens",
    "forced_bos_id": "forced_bos_token_id",
    "forced_eos_ids": "forced_eos_token_id",
    "eos_ids": "eos_token_id",
    "decoder_start_ids": "decoder_start_token_id",
}


def assert_equal_to_reference(ours: GenerationDefaults, reference: GenerationConfig) -> None:
    """Every field, where None in transformers is neutral and a list may be one id."""
    neutral = GenerationDefaults()
    for name in (each.name for each in fields(GenerationDefaults) if each.compare):
        expected = getattr(reference, REFERENCE.get(name, name))
        if isinstance(getattr(neutral, name), tuple):
            expected = () if expected is None else expected if isinstance(expected, list) else (expected,)
            expected = tuple(tuple(item) if isinstance(item, list) else item for item in expected)
        elif expected is None:
            expected = getattr(neutral, name)
        assert getattr(ours, name) == expected, name


# Every key that is supported, none with its neutral value.
STATED = {
    "do_sample": True, "temperature": 0.6, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.8,
    "repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "encoder_no_repeat_ngram_size": 4, "num_beams": 5,
    "length_penalty": -0.5, "early_stopping": "never", "max_new_tokens": 7, "min_new_tokens": 2, "min_length": 3,
    "max_length": 99, "bad_words_ids": [[5], [6, 7]], "suppress_tokens": [8, 9], "begin_suppress_tokens": [10],
    "forced_bos_token_id": 11, "forced_eos_token_id": [12, 13], "eos_token_id": [3, 5], "decoder_start_token_id": 4,
}  # fmt: skip


def test_every_key_of_generation_config(tmp_path: Path) -> None:
    """config.json has no say where the file is there."""
    config = {"is_encoder_decoder": True, "num_beams": 9, "forced_bos_token_id": 1, "eos_token_id": 9}
    write(tmp_path, config=config, generation_config=STATED)
    ours = GenerationDefaults.from_folder(tmp_path)
    assert_equal_to_reference(ours, GenerationConfig.from_pretrained(tmp_path))
    neutral = GenerationDefaults()
    assert all(getattr(ours, each.name) != getattr(neutral, each.name) for each in fields(ours))


def test_config_of_older_times_states_them_too(tmp_path: Path) -> None:
    """Where there is no generation_config.json transformers reads config.json in its place."""
    stated = {**STATED, "early_stopping": True, "forced_eos_token_id": 2}
    write(tmp_path, config={"model_type": "bart", "is_encoder_decoder": True, **stated})
    reference = GenerationConfig.from_pretrained(tmp_path, config_file_name="config.json", _from_model_config=True)
    assert_equal_to_reference(GenerationDefaults.from_folder(tmp_path), reference)


def test_tasks_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a task states goes before what the checkpoint does."""
    summarize = {
        "prefix": "summarize: ",
        "num_beams": 4,
        "max_length": 142,
        "early_stopping": True,
        "num_beam_groups": 2,
    }
    config = {"eos_token_id": 1, "task_specific_params": {"summarization": summarize, "text-generation": {"top_k": 9}}}
    write(tmp_path, config=config, generation_config={"num_beams": 2, "length_penalty": 2.0, "eos_token_id": 6})
    tasks = GenerationDefaults.of_tasks(tmp_path)
    shared = {"length_penalty": 2.0, "eos_ids": (6,)}
    assert tasks == {
        "summarization": TaskDefaults(
            prefix="summarize: ",
            generation=GenerationDefaults(num_beams=4, max_length=142, early_stopping=True, **shared),
        ),
        "text-generation": TaskDefaults(prefix="", generation=GenerationDefaults(num_beams=2, top_k=9, **shared)),
    }
    file = tmp_path / "config.json"
    key = "task_specific_params.summarization.num_beam_groups"
    assert caplog.messages == [f"{file}: {key} is not supported and is ignored"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], r"config\.json: task_specific_params: must be an object, is \[\]"),
        ({"a": 5}, r"task_specific_params\.a: must be an object, is 5"),
        ({"a": {"prefix": 5}}, r"task_specific_params\.a\.prefix: must be a string, is 5"),
        ({"a": {"num_beams": 0}}, r"task_specific_params\.a\.num_beams: must be an integer from 1"),
    ],
    ids=str,
)
def test_a_wrong_task_is_named(tmp_path: Path, tasks: object, message: str) -> None:
    write(tmp_path, config={"task_specific_params": tasks})
    with pytest.raises(CheckpointTextError, match=message):
        GenerationDefaults.of_tasks(tmp_path)


def test_where_a_token_of_a_task_is_named(tmp_path: Path) -> None:
    write(tmp_path, config={"task_specific_params": {"a": {"bad_words_ids": [[3, 700]]}}})
    named = GenerationDefaults.of_tasks(tmp_path)["a"].generation.named_ids
    assert named == (
        (3, "task_specific_params.a.bad_words_ids", tmp_path / "config.json"),
        (700, "task_specific_params.a.bad_words_ids", tmp_path / "config.json"),
    )


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
    neutral = {"num_beam_groups": 1, "sequence_bias": [], "guidance_scale": None}
    GenerationDefaults.from_folder(write(tmp_path, generation_config=neutral))
    assert not caplog.messages
    asked = {"num_beam_groups": 4, "guidance_scale": 1.5, "sequence_bias": [[[5], 1.0]]}
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
        ("typical_p", 0, "must be a number above 0 to 1, is 0"),
        ("num_beams", 0, "must be an integer from 1"),
        ("length_penalty", math.nan, "must be a number from -5 to 5, is nan"),
        ("length_penalty", 5.5, "must be a number from -5 to 5, is 5.5"),
        ("early_stopping", "always", "must be true, false or 'never', is 'always'"),
        ("early_stopping", 1, "must be true, false or 'never', is 1"),
        ("no_repeat_ngram_size", -1, "must be an integer from 0"),
        ("bad_words_ids", [[]], "must be a list of lists of token ids"),
        ("bad_words_ids", [3], "must be a list of lists of token ids"),
        ("bad_words_ids", 3, "must be a list of lists of token ids, is 3"),
        ("bad_words_ids", [[3], [-4]], "must be a list of lists of token ids"),
        ("suppress_tokens", [-1], "must be a token id or a list of them"),
        ("forced_bos_token_id", "<s>", "must be a token id or a list of them, is '<s>'"),
        ("forced_bos_token_id", [1, 2], "must be one token id, is \\[1, 2\\]"),
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
