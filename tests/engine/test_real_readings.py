"""What is made of sequences that are read whole, on real (tiny) checkpoints against transformers."""

import random

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from support.architectures import VOCAB_SIZE
from support.checkpoints import save
from support.engine import engine_of, generate, run
from tercet.server.models import load_model
from tercet.server.wire import Embed, FillMask, Predict, Score

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
START = [0]


def random_ids(rng, shortest, longest):
    return [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(shortest, longest))]


TEXTS = [random_ids(random.Random(key), 3, 40) for key in range(9)]
SOURCES = [random_ids(random.Random(100 + key), 1, 50) for key in range(9)]


def load(folder, max_length=90):
    return load_model(folder, device=torch.device("cpu"), dtype="float32", max_length=max_length)


@pytest.fixture(scope="module", params=["decoder", "seq2seq"])
def generative(request, tmp_path_factory):
    """Family, our model and transformers' of one checkpoint."""
    row, auto = {"decoder": ("llama", AutoModelForCausalLM), "seq2seq": ("t5", AutoModelForSeq2SeqLM)}[request.param]
    folder = save(tmp_path_factory.mktemp(request.param), row)
    return request.param, load(folder), auto.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def reference(family, model, key):
    """Ids whose likelihood is asked for, and transformers' log softmax [len(ids) - 1, vocabulary] of them."""
    ids = torch.tensor([TEXTS[key] if family == "decoder" else START + TEXTS[key]])
    inputs = (
        {"input_ids": ids}
        if family == "decoder"
        else {"input_ids": torch.tensor([SOURCES[key]]), "decoder_input_ids": ids}
    )
    return ids[0].tolist(), model(**inputs).logits[0, :-1].log_softmax(-1).numpy()


def score(family, key, **options):
    ids = (
        {"token_ids": TEXTS[key]}
        if family == "decoder"
        else {"token_ids": SOURCES[key], "decoder_ids": START + TEXTS[key]}
    )
    return Score(id=key, **ids, **options)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_scores_are_those_of_transformers(generative, caplog, layout):
    """Beside embeddings and generation, whose tokens are what they are alone."""
    family, ours, theirs = generative
    start = START if family == "seq2seq" else []
    texts = [
        generate(20 + key, ids, 5, decoder_ids=start, seed=key, temperature=float(key % 2))
        for key, ids in enumerate(TEXTS)
    ]
    alone = [run(engine_of(ours), message).tokens[message.id, 0] for message in texts]
    scores = [score(family, key, first=1 + key % 2, top_logprobs=key % 4) for key in range(len(TEXTS))]
    embeds = [
        Embed(id=40 + key, token_ids=ids, pooling=["none", "last", "mean"][key % 3], normalize=False)
        for key, ids in enumerate(TEXTS)
    ]
    mixed = [message for group in zip(texts, scores, embeds, strict=True) for message in group]
    answers = run(engine_of(ours, layout=layout, max_batch_tokens=128, max_rows=7), *mixed)
    assert [answers.tokens[20 + key, 0] for key in range(len(TEXTS))] == alone
    assert "batch failed" not in caplog.text  # and worked row by row
    for key, message in enumerate(scores):
        ids, wanted = reference(family, theirs, key)
        wanted, given = wanted[message.first - 1 :], ids[message.first :]
        found = answers.likely[key].logprobs
        np.testing.assert_allclose(
            [token.logprob for token in found], wanted[np.arange(len(given)), given], **TOLERANCE
        )
        for token, row in zip(found, wanted, strict=True):
            assert token.top_ids == (-row).argsort(kind="stable")[: message.top_logprobs].tolist()
            np.testing.assert_allclose(token.top_logprobs, row[token.top_ids], **TOLERANCE)
    for key, ids in enumerate(TEXTS):
        with torch.inference_mode():
            stack = theirs.get_decoder() if family == "decoder" else theirs.get_encoder()
            (hidden,) = stack(torch.tensor([ids])).last_hidden_state
        wanted = [hidden, hidden[-1], hidden.mean(0)][key % 3]
        found = np.frombuffer(answers.vectors[40 + key], "<f4")
        np.testing.assert_allclose(found.reshape(wanted.shape), wanted, **TOLERANCE)


HEADS = [
    ("bert", "BertForMaskedLM"),
    ("bert", "BertForSequenceClassification"),
    ("roberta", "RobertaForTokenClassification"),
    ("distilbert", "DistilBertForQuestionAnswering"),
    ("electra", "ElectraForMaskedLM"),
    ("modernbert-biases", "ModernBertForSequenceClassification"),
    ("llama", "LlamaForSequenceClassification"),
]


def types_of(ids):
    return [int(place > len(ids) // 2) for place in range(len(ids))]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(("row", "head"), HEADS)
def test_heads_are_those_of_transformers(tmp_path, caplog, row, head, layout):
    """Beside embeddings, whose features may be cut before they are normalised."""
    folder = save(tmp_path, row, head)
    theirs = getattr(transformers, head).from_pretrained(folder, dtype=torch.float32).eval()
    masks = "MaskedLM" in head
    messages = []
    for key, ids in enumerate(TEXTS):
        types = types_of(ids) if key % 2 and row == "bert" else None
        places = list(range(0, len(ids), 2))
        targets = [5, 300, 17] if key % 3 == 0 else []
        messages.append(
            FillMask(id=key, token_ids=ids, type_ids=types, positions=places, top_k=2 + key, targets=targets)
            if masks
            else Predict(id=key, token_ids=ids, type_ids=types)
        )
        pooling = ["cls", "none"][key % 2]
        messages.append(Embed(id=50 + key, token_ids=ids, pooling=pooling, normalize=key % 3 > 0, dimensions=31))
    answers = run(engine_of(load(folder), layout=layout, max_batch_tokens=256, max_rows=7), *messages)
    assert sum(stats.rows for stats in answers.stats) / len(answers.stats) > 4
    assert "batch failed" not in caplog.text  # and worked row by row
    for message in messages:
        with torch.inference_mode():
            types = {"token_type_ids": torch.tensor([message.type_ids])} if message.type_ids else {}
            output = theirs(torch.tensor([message.token_ids]), output_hidden_states=True, **types)
        if isinstance(message, Embed):
            rows = output.hidden_states[-1][0][: 1 if message.pooling == "cls" else None, :31]
            wanted = torch.nn.functional.normalize(rows, dim=-1) if message.normalize else rows
            found = np.frombuffer(answers.vectors[message.id], "<f4").reshape(-1, 31)
            np.testing.assert_allclose(found, wanted, **TOLERANCE)
        elif isinstance(message, Predict):
            wanted = (
                torch.stack([output.start_logits[0], output.end_logits[0]], -1)
                if "Answering" in head
                else output.logits[0]
            )
            found = np.frombuffer(answers.vectors[message.id], "<f4").reshape(wanted.shape)
            np.testing.assert_allclose(found, wanted, **TOLERANCE)
        else:
            wanted = output.logits[0].log_softmax(-1)[message.positions].numpy()
            allowed = message.targets or list(range(VOCAB_SIZE))
            found = answers.likely[message.id]
            for scores, ids, likely in zip(wanted, found.token_ids, found.logprobs, strict=True):
                assert ids == sorted(allowed, key=lambda token, scores=scores: -scores[token])[: message.top_k]
                np.testing.assert_allclose(likely, scores[ids], **TOLERANCE)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("head", ["BartForSequenceClassification", "BartForQuestionAnswering"])
def test_heads_of_seq2seq_models_are_those_of_transformers(tmp_path, caplog, head, layout):
    """The decoder reads the text again, one place later; beside embeddings."""
    folder = save(tmp_path, "bart", head)
    theirs = getattr(transformers, head).from_pretrained(folder, dtype=torch.float32).eval()
    start, end = theirs.config.decoder_start_token_id, theirs.config.eos_token_id
    texts = [[*[token for token in ids if token != end][:39], end] for ids in TEXTS]
    rows = [Predict(id=key, token_ids=ids, decoder_ids=[start, *ids[:-1]]) for key, ids in enumerate(texts)]
    embeds = [
        Embed(id=50 + key, token_ids=ids[:40], pooling="mean", normalize=False) for key, ids in enumerate(SOURCES)
    ]
    answers = run(engine_of(load(folder, 41), layout=layout, max_batch_tokens=200, max_rows=7), *rows, *embeds)
    for message in rows:
        with torch.inference_mode():
            output = theirs(torch.tensor([message.token_ids]))
        wanted = (
            torch.stack([output.start_logits[0], output.end_logits[0]], -1) if "Answering" in head else output.logits[0]
        )
        found = np.frombuffer(answers.vectors[message.id], "<f4").reshape(wanted.shape)
        np.testing.assert_allclose(found, wanted, **TOLERANCE)
    for message in embeds:
        with torch.inference_mode():
            (hidden,) = theirs.get_encoder()(torch.tensor([message.token_ids])).last_hidden_state
        np.testing.assert_allclose(np.frombuffer(answers.vectors[message.id], "<f4"), hidden.mean(0), **TOLERANCE)
    assert all(stats.host_to_device_copies == 1 for stats in answers.stats)
    assert "batch failed" not in caplog.text  # and worked row by row
