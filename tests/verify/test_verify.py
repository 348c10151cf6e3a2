"""`tercet verify` on tiny checkpoints: what it says of one, and that it finds what is wrong."""

import pytest
import torch
import typer
from typer.testing import CliRunner

from support.architectures import ROWS
from support.checkpoints import tiny
from support.packaged import pronounce
from tercet.server.verify.command import verify
from tercet.server.verify.reference import Reference

NEW_TOKENS = "6"


@pytest.fixture
def tercet_verify(monkeypatch):
    monkeypatch.setenv("TERCET_THREADS", "1")
    app = typer.Typer()
    app.command()(verify)
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments), "--max-new-tokens", NEW_TOKENS])


def findings(result):
    """What was found of each thing, by its name."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.output.splitlines() if line.startswith(("ok", "FAILED"))]
    return {line[8:28].strip(): line[:8].strip() for line in lines}


@pytest.mark.parametrize("row", ROWS)
def test_every_architecture_is_verified(tercet_verify, tmp_path, row):
    result = tercet_verify(tiny(tmp_path / row, row))
    found = findings(result)
    assert set(found.values()) == {"ok"}, result.output
    assert result.exit_code == 0
    assert {"token ids", "hidden states", "speed"} <= set(found)


@pytest.mark.parametrize(
    ("row", "head", "compared"),
    [
        ("bert", "BertForMaskedLM", "log probabilities"),
        ("bert", "BertForSequenceClassification", "logits"),
        ("distilbert", "DistilBertForTokenClassification", "logits"),
        ("roberta", "RobertaForQuestionAnswering", "logits"),
        ("bart", "BartForSequenceClassification", "logits"),
        ("t5", "T5ForConditionalGeneration", "greedy tokens"),
    ],
)
def test_outputs_of_heads_are_compared(tercet_verify, tmp_path, row, head, compared):
    result = tercet_verify(tiny(tmp_path / row, row, head))
    assert findings(result)[compared] == "ok", result.output
    assert head in result.output


def test_8_bit_floats_have_bounds_of_their_own(tercet_verify):
    """On trained weights, of which the report tells how far they were rounded."""
    result = tercet_verify(pronounce(), "--dtype", "fp8")
    assert set(findings(result).values()) == {"ok"}, result.output
    assert "fp8 on cpu against float32 on cpu" in result.output
    assert "quantized weights differ by 2.6e-02 of their norm" in result.output
    assert "the tolerance is 4.0e-01" in result.output
    assert "39 must" in result.output  # of 48 tokens


@pytest.mark.parametrize("changed", ["features", "outputs"])
def test_numbers_that_differ_are_found(tercet_verify, tmp_path, monkeypatch, changed):
    folder = tiny(tmp_path / "llama", "llama")
    original = getattr(Reference, changed)
    monkeypatch.setattr(Reference, changed, lambda self, *ids: original(self, *ids) * 1.001)
    found = findings(result := tercet_verify(folder))
    assert result.exit_code == 1
    assert found["hidden states" if changed == "features" else "log probabilities"] == "FAILED"


def test_a_reference_that_computes_no_numbers_is_no_agreement(tercet_verify, tmp_path, monkeypatch):
    original = Reference.features
    monkeypatch.setattr(Reference, "features", lambda self, ids: original(self, ids) * torch.nan)
    result = tercet_verify(tiny(tmp_path / "bert", "bert"))
    assert findings(result)["hidden states"] == "FAILED"
    assert result.exit_code == 1


def test_tokens_that_differ_are_found(tercet_verify, tmp_path, monkeypatch):
    folder = tiny(tmp_path / "llama", "llama")
    original = Reference.outputs
    monkeypatch.setattr(Reference, "outputs", lambda *given: original(*given).roll(1, -1))
    assert findings(result := tercet_verify(folder))["greedy tokens"] == "FAILED"
    assert result.exit_code == 1


def test_a_tolerance_of_ones_own(tercet_verify, tmp_path):
    folder = tiny(tmp_path / "bert", "bert")
    assert tercet_verify(folder, "--tolerance", "1e-12").exit_code == 1
    assert tercet_verify(folder, "--tolerance", "1").exit_code == 0


def test_another_precision_has_its_own_tolerance(tercet_verify, tmp_path):
    result = tercet_verify(tiny(tmp_path / "bert", "bert"), "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    assert "bfloat16 on cpu" in result.output
    assert "the tolerance is 1.2e-01" in result.output


def test_texts_of_a_file_longer_than_the_model_are_cut(tercet_verify, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("a river\n\n" + "sang to the stones " * 200)
    for row in ("bert", "t5", "gpt2"):
        result = tercet_verify(tiny(tmp_path / row, row), "--texts", texts)
        assert result.exit_code == 0, result.output
        assert "2 of 2 texts agree" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere/to/be/found.gguf"], ["source", "is not there"]),
        (["{folder}", "--dtype", "int8"], ["dtype", "int8"]),
        (["{folder}", "--device", "cuda:7"], ["cuda:7"]),
        (["{broken}"], ["config.json"]),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(tercet_verify, tmp_path, arguments, words):
    folder = tiny(tmp_path / "bert", "bert")
    broken = tiny(tmp_path / "broken", "bert")
    (broken / "config.json").write_text("{}")
    result = tercet_verify(*(argument.format(folder=folder, broken=broken) for argument in arguments))
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.output


def test_a_missing_tensor_is_named(tercet_verify, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny(tmp_path / "bert", "bert")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("output.dense.bias"))
    save_file({key: value for key, value in tensors.items() if key != name}, folder / "model.safetensors")
    result = tercet_verify(folder)
    assert result.exit_code == 2
    assert name in result.output
    assert torch.is_tensor(tensors[name])
