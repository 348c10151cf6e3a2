"""From settings to a warm engine, and what stops it."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from support.architectures import LABELS
from support.checkpoints import VOCAB_SIZE, save, tiny_bert, tiny_llama, tiny_t5
from support.engine import generate, null_engine, run, settings
from tercet.kernels import dispatch
from tercet.kernels.attention_ops import SPLIT_KV_QUERIES
from tercet.server.engine.loading import StartError, load_engine, warm_up
from tercet.server.engine.memory import TooLargeError
from tercet.server.models import CheckpointError, DecoderBatch
from tercet.server.wire import Embed


@pytest.fixture(autouse=True)
def process_settings():
    """Puts back what an engine sets for its process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    dispatch.select("auto")


@pytest.mark.parametrize(
    ("make", "family", "max_length"),
    [(tiny_bert, "encoder", 64), (tiny_llama, "decoder", 90), (tiny_t5, "seq2seq", 64)],
)
def test_every_family_starts(tmp_path, make, family, max_length):
    """Encoders read a sequence in one batch, so that `max_batch_tokens` bounds it; decoders take it in chunks."""
    reports = []
    source = str(make(tmp_path))
    engine, info = load_engine(settings(source=source, max_length=90, max_batch_tokens=64), reports.append)
    assert (info.family, info.max_length, info.vocab_size) == (family, max_length, VOCAB_SIZE)
    assert info.tasks == (["embed"] if family == "encoder" else ["embed", "generate", "score"])
    assert info.embedding_size == (40 if family == "seq2seq" else 48)
    assert (info.pages > 0) == (family != "encoder")
    assert reports[-1].stage == "warm-up"
    assert reports[-1].done == reports[-1].total
    assert torch.get_num_threads() == 1
    if family == "encoder":
        assert len(run(engine, Embed(id=0, token_ids=[1, 2], pooling="cls", normalize=True)).vectors[0]) == 4 * 48
    else:
        start = [0] if family == "seq2seq" else []
        assert len(run(engine, generate(0, [1, 2], 3, decoder_ids=start)).tokens[0, 0]) == 3


def test_an_engine_merges_an_adapter_and_projects_vectors(tmp_path):
    """As sentence-transformers fine-tuned with PEFT: weights in torch's format, an adapter and a Dense module."""
    source, adapter, dense = tmp_path / "base", tmp_path / "adapter", tmp_path / "base" / "1_Dense"
    tiny_bert(source)
    torch.save(tensors := load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    for folder in (adapter, dense):
        folder.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    name = "encoder.layer.2.output.dense"
    product = {"lora_A": torch.randn(2, 88), "lora_B": torch.randn(48, 2)}
    save_file(
        {f"base_model.model.{name}.{k}.weight": v for k, v in product.items()}, adapter / "adapter_model.safetensors"
    )
    (source / "modules.json").write_text(json.dumps([{"type": "x.Pooling"}, {"type": "x.Dense", "path": "1_Dense"}]))
    shape = {"in_features": 48, "out_features": 7, "bias": False, "activation_function": "Identity"}
    (dense / "config.json").write_text(json.dumps(shape))
    save_file({"linear.weight": torch.randn(7, 48)}, dense / "model.safetensors")
    loaded = settings(source=str(source), adapter=str(adapter), allow_pickle=True)
    engine, info = load_engine(loaded, lambda report: None)
    assert info.embedding_size == 7
    answers = run(engine, Embed(id=0, token_ids=[1, 2, 3], pooling="mean", normalize=False))

    merged = tmp_path / "merged"
    shutil.copytree(source, merged)
    (merged / "pytorch_model.bin").unlink()
    tensors[f"{name}.weight"] += product["lora_B"] @ product["lora_A"]
    save_file(tensors, merged / "model.safetensors")
    whole, _ = load_engine(settings(source=str(merged)), lambda report: None)
    expected = run(whole, Embed(id=0, token_ids=[1, 2, 3], pooling="mean", normalize=False))
    vectors = [np.frombuffer(answer.vectors[0], np.float32) for answer in (answers, expected)]
    assert len(vectors[0]) == 7
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        load_engine(settings(source=str(source)), lambda report: None)


def test_a_model_of_two_vocabularies_starts(tmp_path):
    source = str(save(tmp_path, "marian-two"))
    _, info = load_engine(settings(source=source), lambda _: None)
    assert (info.vocab_size, info.target_vocab_size) == (VOCAB_SIZE, VOCAB_SIZE + 70)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"source": "/nowhere/at/all"}, CheckpointError, "/nowhere/at/all"),
        ({"memory": 300_000}, TooLargeError, "^its share of memory is 0.3 MiB"),
        ({"memory": 1_000_000, "max_rows": 64}, TooLargeError, "a batch"),
        ({"kernels": "triton"}, StartError, "--kernels triton .*TRITON_INTERPRET"),
    ],
)
def test_what_stops_an_engine(tmp_path, changes, error, words):
    source = str(tiny_llama(tmp_path))
    with pytest.raises(error, match=words):
        load_engine(settings(**{"source": source} | changes), lambda report: None)


def test_torchs_files_need_permission(tmp_path):
    weights = tmp_path / "model.safetensors"
    save(tmp_path, "bert", "BertForSequenceClassification")
    torch.save(load_file(weights), tmp_path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        load_engine(settings(source=str(tmp_path)), lambda report: None)
    _, info = load_engine(settings(source=str(tmp_path), allow_pickle=True), lambda report: None)
    assert (info.tasks, info.labels, info.pages) == (["embed", "classify"], LABELS, 0)


def test_an_adapter_is_merged(tmp_path):
    """One that isn't there is refused by name, so the setting reaches the checkpoint."""
    source, adapter = str(save(tmp_path, "llama")), str(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=adapter):
        load_engine(settings(source=source, adapter=adapter), lambda report: None)


@pytest.mark.parametrize(
    ("row", "head", "tasks", "labels"),
    [
        ("bert", "BertModel", [], 0),
        ("bert", "BertForMaskedLM", ["fill_mask", "score"], 0),
        ("bert", "BertForTokenClassification", ["tag"], LABELS),
        ("bert", "BertForQuestionAnswering", ["answer"], 0),
        ("llama", "LlamaForSequenceClassification", ["classify"], LABELS),
        ("bart", "BartForSequenceClassification", ["classify"], LABELS),
        ("t5", "T5EncoderModel", [], 0),
    ],
)
def test_heads_say_what_a_model_can_do(tmp_path, row, head, tasks, labels):
    """And what does not generate has no pages."""
    source = str(save(tmp_path, row, head))
    _, info = load_engine(settings(source=source), lambda report: None)
    assert info.tasks == ["embed", *tasks]
    assert (info.labels, info.pages) == (labels, 0)
    assert info.max_length <= 64


@pytest.mark.parametrize("family", ["encoder", "decoder", "seq2seq"])
def test_a_model_that_fails_is_not_ready(family):
    engine, _ = null_engine(family, heavy=1)
    with pytest.raises(StartError, match="warm-up failed"):
        warm_up(engine, engine._limits, lambda done, total: None, compiles=False)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("family", ["decoder", "seq2seq"])
def test_the_kernels_of_mixed_batches_are_compiled_beforehand(family, ahead):
    """Prompts of a few tokens and of more than the split schedule takes, alone and beside beams; and tokens alone."""
    engine, model = null_engine(family, ahead=ahead, pages=128)
    warm_up(engine, engine._limits, lambda done, total: None, compiles=True)
    assert not engine.busy
    forms = {
        (batch.key_rows is not None, min(batch.rows.longest, 2) + (batch.rows.longest > SPLIT_KV_QUERIES))
        for batch in model.batches
        if isinstance(batch, DecoderBatch)
    }
    longest = 2 if family == "seq2seq" else 3
    assert forms >= {(beams, length) for beams in (False, True) for length in range(1, longest + 1)}
