"""Rows that choose among their likeliest tokens choose what they would choose among all."""

import pytest
import torch

from support.checkpoints import tiny_bert, tiny_llama, tiny_t5
from support.engine import engine_of, generate, run, sampling_of
from tercet.kernels import dispatch, head_topk
from tercet.server.engine.sampler import choose, draw
from tercet.server.engine.sequence import generation_request
from tercet.server.models import load_model

VOCAB_SIZE = 333
CPU = torch.device("cpu")


class HeadAlone:
    """A model's head, and how often it gave what."""

    target_vocab_size = VOCAB_SIZE

    def __init__(self, weight, refusals=()):
        self.weight, self.refusals, self.asked = weight, list(refusals), []

    def topk_refusals(self, rows, k):
        return self.refusals

    def head_topk(self, hidden, k):
        self.asked.append(k)
        return head_topk(hidden, self.weight, k=k)

    def logits(self, hidden):
        self.asked.append(None)
        return hidden @ self.weight.T


def drawn(model, hidden, kinds):
    """The tokens of rows of these kinds, in turn, by `draw` and by all logits."""
    rows = [
        generation_request(generate(0, [3], 9, seed=seed, **kinds[seed % len(kinds)]), 0, "decoder", 64).sequences[0]
        for seed in range(len(hidden))
    ]
    sampling = sampling_of(rows)
    return draw(model, hidden, sampling), choose(hidden @ model.weight.T, sampling)


GREEDY = {"temperature": 0.0}
TOP_K = [
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 1.3, "top_k": 64, "top_p": 0.7, "min_p": 0.02},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 5.0, "top_k": 7, "top_p": 0.95},
]


@pytest.mark.parametrize(
    ("kinds", "asked"),
    [
        ([GREEDY], 1),
        (TOP_K, 128),
        ([GREEDY, *TOP_K], 128),
        ([GREEDY, {"temperature": 1.0}], None),
        ([{"temperature": 1.0, "top_k": 65}], None),
        ([GREEDY, {"logprobs": True}], None),
        ([GREEDY, {"repetition_penalty": 1.5}], None),
        ([TOP_K[0], {"temperature": 1.0, "top_k": 9, "typical_p": 0.5}], None),
    ],
    ids=str,
)
@pytest.mark.parametrize("equals", [False, True], ids=["", "equals"])
def test_the_same_tokens_by_the_class_of_the_batch(kinds, asked, equals):
    """Of real logits, and of few different ones, where those equal to the last one kept stay too."""
    torch.manual_seed(0)
    weight, hidden = torch.randn(VOCAB_SIZE, 8), torch.randn(200, 8)
    if equals:
        weight, hidden = (3 * weight).round(), torch.nn.functional.one_hot(torch.arange(200) % 8).float()
    model = HeadAlone(weight)
    tokens, wanted = drawn(model, hidden, kinds)
    assert model.asked == [asked]
    assert tokens.tokens.dtype == torch.int64
    assert torch.equal(tokens.tokens, wanted.tokens)
    assert len(tokens.tokens.unique()) > 4


@pytest.mark.parametrize("kinds", [[GREEDY], TOP_K], ids=["greedy", "top-k"])
def test_rows_that_can_not_choose(kinds):
    weight = torch.ones(VOCAB_SIZE, 1)
    weight[300] = 2.0
    hidden = torch.tensor([[torch.nan], [torch.inf], [-torch.inf], [100.0]])
    tokens, wanted = drawn(HeadAlone(weight), hidden, kinds)
    assert tokens.tokens.tolist() == wanted.tokens.tolist() == [VOCAB_SIZE] * 3 + [300]


def test_a_model_that_refuses_is_asked_for_all_logits():
    model = HeadAlone(torch.randn(VOCAB_SIZE, 8), refusals=["it is quicker so"])
    drawn(model, torch.randn(3, 8), [GREEDY])
    assert model.asked == [None]


@pytest.fixture
def reference_kernels():
    """Serves with the reference implementation."""
    dispatch.select("reference")
    yield
    dispatch.select("auto")


@pytest.mark.parametrize("make", [tiny_llama, tiny_t5])
def test_a_model_generates_the_same(tmp_path, make, reference_kernels, monkeypatch):
    """Through the head of a checkpoint, tied and scaled in T5's case, with and without all its logits."""
    model = load_model(make(tmp_path), device=CPU, dtype="float32", max_length=64)
    start = [0] if model.family == "seq2seq" else []
    requests = [
        generate(key, [5, 9, 33 + key], 8, decoder_ids=start, n=2, seed=key, **kind)
        for key, kind in enumerate([GREEDY, *TOP_K])
    ]
    before = dispatch.launches().get("head_topk/reference", 0)
    tokens = run(engine_of(model), *requests).tokens
    assert dispatch.launches()["head_topk/reference"] > before
    monkeypatch.setattr(model, "topk_refusals", lambda rows, k: ["not here"])
    assert run(engine_of(model), *requests).tokens == tokens


def test_what_refuses(tmp_path):
    model = load_model(tiny_bert(tmp_path), device=CPU, dtype="float32")
    with pytest.raises(TypeError, match="no head"):
        model.topk_refusals(1, 1)
    model = load_model(tiny_llama(tmp_path / "llama"), device=CPU, dtype="float32")
    assert model.topk_refusals(1, 1) == ["cpu is quicker with all outputs of more than 0 rows"]
    model.transformer.head.output.pack()
    assert model.topk_refusals(1, 1) == ["the head's weight is packed"]
    with pytest.raises(ValueError, match="packed"):
        model.head_topk(torch.zeros(1, model.hidden_size), 1)
