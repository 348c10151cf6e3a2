"""Equality on the tiny checkpoints means something: without any one tensor, mask or bias their output is another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from support.architectures import DECODERS, ENCODERS, ROWS, SEQ2SEQ, cases, representatives, used
from support.checkpoints import build, stored
from support.forward import Decoding, Pair, encode, encoder_batch, relative_error, take, texts, token_types
from tercet.server.models.attention import SelfAttention

if TYPE_CHECKING:
    from tercet.server.models import Model

MOVED = 100 * 1e-4  # of the tolerance of equality
LENGTHS = (7, 19, 30)
LONG = 40
EOS = 1
# A bias of keys adds the same to all scores of a query, where they aren't rotated.
KEY_BIASES = ("self.key.bias", "k_lin.bias", "attn.k.bias", "attn.k_proj.bias")

Load = Callable[..., Pair]


def outputs(pair: Pair) -> list[torch.Tensor]:
    """What the reference computes for one text: final hidden states, and logits where it has a head."""
    ids, source = texts(LONG)[0], texts(LONG, seed=1)[0] if pair.ours.family == "seq2seq" else None
    (types,) = token_types(pair.ours, [ids]) or [None]
    if source:
        source[-1] = EOS  # where the reference classifies
    expected = pair.expected(ids, type_ids=types, source=source)
    return [expected.states[-1]] if expected.logits is None else [expected.states[-1], expected.logits]


def moved(pair: Pair, expected: list[torch.Tensor]) -> float:
    """How far the reference's outputs are from what they were."""
    return max(map(relative_error, outputs(pair), expected))


@pytest.mark.parametrize(("name", "head"), cases(ROWS))
def test_every_tensor_counts(pair: Load, name: str, head: str) -> None:
    """In the reference, which ours equals: a norm's weights become 1, all others 0."""
    case, first = pair(name, head), ROWS[name].classes[0]
    before = () if head == first else used(first, stored(pair(name, first).reference))
    tensors = stored(case.reference)
    names = representatives(used(head, tensors), but=before)
    expected = outputs(case)
    distances: dict[str, float] = {}
    for tensor in names:
        kept = tensors[tensor].clone()
        tensors[tensor].fill_("norm" in tensor.lower() and tensor.endswith("weight"))
        distances[tensor] = moved(case, expected)
        tensors[tensor].copy_(kept)
    rotated = any(stack.rotaries != (None,) for stack in case.ours.spec.stacks.values())
    idle = set() if rotated else {tensor for tensor in names if tensor.endswith(KEY_BIASES)}
    assert {tensor for tensor, distance in distances.items() if distance < MOVED} == idle


COUNT: list[tuple[str, dict[str, Any]]] = [
    ("bert", {"layer_norm_eps": 1e-12}),
    ("bert", {"hidden_act": "relu"}),
    ("roberta", {"pad_token_id": 1}),
    ("modernbert", {"local_attention": 11}),
    ("modernbert", {"layer_types": ["full_attention", *["sliding_attention"] * 4]}),
    ("openai-gpt", {"afn": "relu"}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": False}),
    ("gpt2", {"scale_attn_weights": False}),
    ("gpt_neo", {"window_size": 6}),
    ("gpt_neo", {"attention_types": [[["global", "local", "local"], 1]]}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("gpt_neox", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    ("llama-yarn", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    ("mistral", {"sliding_window": 6}),
    ("qwen2", {"sliding_window": 6}),
    ("qwen2", {"max_window_layers": 2}),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
]


@pytest.mark.parametrize(("name", "change"), COUNT, ids=str)
def test_what_a_config_says_counts(pair: Load, name: str, change: dict[str, Any]) -> None:
    case = pair(name)
    other = build(name, **change).eval()
    other.load_state_dict(case.reference.state_dict())
    assert moved(replace(case, reference=other), outputs(case)) > MOVED


def ours(model: Model) -> torch.Tensor:
    """The final hidden states of three texts."""
    if model.family == "encoder":
        return torch.cat(encode(model, texts(*LENGTHS)))
    sources = texts(*LENGTHS, seed=1) if model.family == "seq2seq" else None
    return torch.cat(Decoding(model, len(LENGTHS), sources=sources).read(texts(*LENGTHS)))


@pytest.mark.parametrize("name", [*DECODERS, *SEQ2SEQ])
def test_the_causal_mask_counts(pair: Load, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pair(name).ours
    expected = ours(model)
    for module in model.transformer.decoder.modules():
        if isinstance(module, SelfAttention):
            monkeypatch.setattr(module, "causal", False)
            monkeypatch.setattr(module, "window", None)  # which hides what follows, too
    assert relative_error(ours(model), expected) > MOVED


@pytest.mark.parametrize("name", ROWS)
def test_windows_count(pair: Load, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pair(name).ours
    expected, found = ours(model), False
    for module in model.transformer.modules():
        if isinstance(module, SelfAttention) and module.window:
            monkeypatch.setattr(module, "window", None)
            found = True
    assert (relative_error(ours(model), expected) > MOVED) == found


@pytest.mark.parametrize("name", [*ENCODERS, *SEQ2SEQ])
def test_the_padding_mask_counts(pair: Load, name: str) -> None:
    model = pair(name).ours
    batch = encoder_batch(texts(*LENGTHS), padded=True)
    rows = replace(batch.rows, length=torch.full_like(batch.rows.length, batch.rows.longest))
    unmasked = model.encode(replace(batch, rows=rows))
    for hidden, expected in zip(take(unmasked, batch.rows)[:2], encode(model, texts(*LENGTHS))[:2], strict=True):
        assert relative_error(hidden, expected) > MOVED


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_the_length_of_a_source_counts(pair: Load, name: str) -> None:
    model = pair(name).ours
    targets = texts(5, 5)
    whole, cut = (Decoding(model, 2, sources=texts(9, 12)) for _ in range(2))
    cut.sources = [9, 3]
    (same, other), (same_again, less) = whole.read(targets), cut.read(targets)
    assert torch.equal(same, same_again)
    assert relative_error(less, other) > MOVED
