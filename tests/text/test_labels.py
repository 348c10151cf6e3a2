"""What a checkpoint's config says of its head, against transformers' configuration."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from support import packaged
from tercet.server.text import CheckpointTextError, TextModel, load_text_model


def load(folder: Path, **config: Any) -> TextModel:
    """MiniLM's tokenizer beside a config.json of these keys."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((packaged.minilm() / name).read_bytes())
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    return load_text_model(folder)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_labels": 3},
        {"id2label": {"2": "c", "0": "a", "1": "b"}},
        {"id2label": {str(i): f"L{i}" for i in range(12)}},
    ],
    ids=str,
)
def test_labels_by_index(tmp_path: Path, config: dict[str, Any]) -> None:
    reference = BertConfig(**config)
    assert load(tmp_path, **config).labels == tuple(reference.id2label[i] for i in range(reference.num_labels))


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({}, None),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5"}}, "none"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "none"),
        ({"function_to_apply": "softmax"}, "softmax"),
    ],
    ids=str,
)
def test_activation(tmp_path: Path, config: dict[str, Any], activation: str | None) -> None:
    assert load(tmp_path, **config).activation == activation


def test_labels_of_entailment(tmp_path: Path) -> None:
    model = load(tmp_path, id2label={"0": "CONTRADICTION", "1": "neutral", "2": "Entailment"})
    assert (model.entailment, model.contradiction) == (2, 0)
    model = load(tmp_path, id2label={"0": "entailment", "1": "not_entailment"}, problem_type="regression")
    assert (model.entailment, model.contradiction, model.problem_type) == (0, None, "regression")


def test_mask(tmp_path: Path) -> None:
    assert load(tmp_path).mask == ("[MASK]", 103)
    assert load_text_model(packaged.smollm2()).mask is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": ["a"]}, r"config\.json: id2label: must be an object, is \['a'\]"),
        ({"num_labels": 0}, "num_labels: must be an integer from 1"),
        ({"problem_type": 5}, "problem_type: must be a string, is 5"),
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}},
            r"sentence_transformers\.activation_fn: must be one of softmax, sigmoid, none, identity, is 'torch",
        ),
        ({"sentence_transformers": 5}, "sentence_transformers: must be an object, is 5"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointTextError, match=message):
        load(tmp_path, **config)
