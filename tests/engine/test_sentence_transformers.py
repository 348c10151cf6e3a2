"""Folders as sentence-transformers saves them: bi-encoders with every kind of pooling, and cross-encoders."""

import json

import numpy as np
import pytest
import torch
import transformers

from support.checkpoints import tiny
from support.engine import engine_of, run
from tercet.server.models import load_model
from tercet.server.text import load_text_model
from tercet.server.wire import Embed, Predict

TEXTS = ("a fox", "the quick brown fox jumps over the lazy dog", "encoders read, decoders write")
POOLED = {
    "mean": lambda hidden: hidden.mean(dim=0),
    "cls": lambda hidden: hidden[0],
    "last": lambda hidden: hidden[-1],
    "max": lambda hidden: hidden.amax(dim=0),
}


@pytest.mark.parametrize(
    ("row", "flag", "pooling", "normalize"),
    [
        ("mpnet", "pooling_mode_mean_tokens", "mean", True),
        ("roberta", "pooling_mode_cls_token", "cls", True),
        ("distilbert", "pooling_mode_max_tokens", "max", False),
        ("modernbert", "pooling_mode_lasttoken", "last", False),
    ],
)
def test_bi_encoders(tmp_path, row, flag, pooling, normalize):
    folder = tiny(tmp_path, row)
    kinds = ["Transformer", "Pooling", *["Normalize"] * normalize]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({flag: True}))
    text = load_text_model(folder)
    assert (text.embedding.pooling, text.embedding.normalize) == (pooling, normalize)
    engine = engine_of(load_model(folder, device=torch.device("cpu")))
    read = [text.tokenizer.encode(one).ids for one in TEXTS]
    answers = run(
        engine, *(Embed(id=i, token_ids=ids, pooling=pooling, normalize=normalize) for i, ids in enumerate(read))
    )
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    for i, ids in enumerate(read):
        with torch.inference_mode():
            expected = POOLED[pooling](reference(torch.tensor([ids])).last_hidden_state[0])
        expected = torch.nn.functional.normalize(expected, dim=-1) if normalize else expected
        np.testing.assert_allclose(np.frombuffer(answers.vectors[i], "<f4"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ("bert", "Bert"),
        ("roberta", "Roberta"),
        ("electra", "Electra"),
        ("distilbert", "DistilBert"),
        ("modernbert", "ModernBert"),
    ],
)
def test_cross_encoders(tmp_path, row, name):
    """One label, of a pair of texts."""
    folder = tiny(tmp_path, row, f"{name}ForSequenceClassification", num_labels=1)
    text, model = load_text_model(folder), load_model(folder, device=torch.device("cpu"))
    assert (text.labels, model.spec.head.outputs) == (("LABEL_0",), 1)
    pairs = [text.tokenizer.encode_pair(TEXTS[0], passage) for passage in TEXTS]
    questions = (Predict(id=i, token_ids=pair.ids, type_ids=pair.type_ids) for i, pair in enumerate(pairs))
    answers = run(engine_of(model), *questions)
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    typed = model.spec.encoder.token_types
    for i, pair in enumerate(pairs):
        inputs = {"input_ids": pair.ids, **({"token_type_ids": pair.type_ids} if typed else {})}
        with torch.inference_mode():
            expected = reference(**{name: torch.tensor([ids]) for name, ids in inputs.items()}).logits[0]
        np.testing.assert_allclose(np.frombuffer(answers.vectors[i], "<f4"), expected, rtol=1e-4, atol=1e-4)
