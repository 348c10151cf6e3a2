"""What checkpoints say about embedding, and files that say it wrongly."""

import json
from pathlib import Path
from typing import Any

import pytest

from support import packaged
from tercet.server.text import CheckpointTextError, EmbeddingDefaults, load_text_model

MEAN = {"pooling_mode": "mean"}


def write(folder: Path, **files: Any) -> Path:
    """`modules=[...]` writes modules.json."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


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
        (MEAN, ("Transformer", "Pooling", "LSTM"), {}, r"modules\.json: \[2\]\.type: must be .*, is 'LSTM'"),
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


def test_prompts(tmp_path: Path) -> None:
    """Dense layers are the engine's part, and no matter here."""
    prompts = {"query": "query: ", "passage": ""}
    sentence_transformer(tmp_path, MEAN | {"include_prompt": True}, "Transformer", "Pooling", "Dense", "Normalize")
    write(tmp_path, config_sentence_transformers={"prompts": prompts, "default_prompt_name": "query"})
    ours = EmbeddingDefaults.from_folder(tmp_path, 512)
    assert (ours.prompts, ours.default_prompt, ours.normalize) == (prompts, "query", True)


@pytest.mark.parametrize(
    ("pooling", "stated", "message"),
    [
        (
            MEAN | {"include_prompt": False},
            {"prompts": {"query": "query: "}},
            r"1_Pooling/config\.json: include_prompt: must be true",
        ),
        (MEAN, {"prompts": ["query: "]}, r"config_sentence_transformers\.json: prompts: must be an object"),
        (MEAN, {"prompts": {"query": 5}}, r"prompts\.query: must be a string, is 5"),
        (MEAN, {"default_prompt_name": "query"}, "default_prompt_name: must be one of no prompts, is 'query'"),
        (MEAN, {"prompts": {"a": "", "b": "x"}, "default_prompt_name": "c"}, "must be one of a, b, is 'c'"),
    ],
    ids=str,
)
def test_wrong_prompts_are_named(tmp_path: Path, pooling: Any, stated: Any, message: str) -> None:
    folder = write(sentence_transformer(tmp_path, pooling), config_sentence_transformers=stated)
    with pytest.raises(CheckpointTextError, match=message):
        EmbeddingDefaults.from_folder(folder, 512)


def test_prompts_that_are_empty_can_be_left_out_of_the_mean(tmp_path: Path) -> None:
    """sentence-transformers writes empty prompts unasked."""
    folder = sentence_transformer(tmp_path, MEAN | {"include_prompt": False})
    write(folder, config_sentence_transformers={"prompts": {"query": "", "document": ""}})
    assert EmbeddingDefaults.from_folder(folder, 512).prompts == {"query": "", "document": ""}
