"""A fine-tune as PEFT saves it, on a base model in torch's format: served as the merged model is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from support.checkpoints import tiny_bert
from support.server import running_server
from tercet.client import Client

TEXTS = ["the quick brown fox", "once upon a time there was a river that sang", "dog"]


@pytest.fixture
def fine_tune(tmp_path: Path) -> tuple[Path, Path, transformers.BertForSequenceClassification]:
    """The base model, the adapter, and transformers' model with the adapter merged by hand."""
    base, adapter = tiny_bert(tmp_path / "base+more"), tmp_path / "adapter"
    config = transformers.BertConfig.from_pretrained(base, num_labels=3)
    merged = transformers.BertForSequenceClassification(config).eval()
    tensors = load_file(base / "model.safetensors")
    merged.bert.load_state_dict(tensors)
    torch.save(tensors, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    adapter.mkdir()
    adapted: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name in ("bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.2.output.dense"):
            weight = merged.get_parameter(f"{name}.weight")
            a, b = torch.randn(4, weight.shape[1]) / 5, torch.randn(weight.shape[0], 4)
            adapted |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
            weight += 2 * b @ a
        for kind, value in merged.classifier.named_parameters():
            adapted[f"base_model.model.classifier.{kind}"] = value.normal_().clone()
    save_file(adapted, adapter / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "task_type": "SEQ_CLS"}
    (adapter / "adapter_config.json").write_text(json.dumps(described))
    return base, adapter, merged


def test_a_fine_tune_is_served_as_the_merged_model(
    fine_tune: tuple[Path, Path, transformers.BertForSequenceClassification],
) -> None:
    base, adapter, merged = fine_tune
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    with running_server({"m": f"{base}+{adapter}"}, "--allow-pickle") as server, Client(server.address) as client:
        assert client.models()[0].labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
        answers = client.classify(TEXTS, model="m")
    for text, answer in zip(TEXTS, answers, strict=True):
        with torch.inference_mode():
            expected = merged(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1).numpy()
        order = expected.argsort()[::-1]
        assert [label.label for label in answer] == [f"LABEL_{i}" for i in order]
        np.testing.assert_allclose([label.score for label in answer], expected[order], atol=1e-4)


def test_pickled_weights_are_refused_unless_they_are_allowed(
    fine_tune: tuple[Path, Path, transformers.BertForSequenceClassification],
) -> None:
    base, adapter, _ = fine_tune
    with pytest.raises(RuntimeError) as error, running_server({"m": f"{base}+{adapter}"}):
        pass
    assert "exit code 2" in str(error.value)
    assert f"{base / 'pytorch_model.bin'}: weights in a pickle are read with --allow-pickle alone" in str(error.value)
