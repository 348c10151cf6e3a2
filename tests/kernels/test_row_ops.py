"""The ops on rows of hidden states (norms, activation, embedding, pooling), against the naive reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tercet.kernels import activation, embedding, layer_norm, pad, pooling, rms_norm
from tercet.kernels.ops import ACTIVATION_KINDS, POOLING_KINDS

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
SHAPES = pytest.mark.parametrize("shape", [(1, 1), (5, 63), (17, 384), (3, 1111)], ids=str)


def normal(*shape: int, dtype: torch.dtype = torch.float32, shift: float = 0.0) -> torch.Tensor:
    return (torch.randn(shape) + shift).to(dtype)


@DTYPES
@SHAPES
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_layer_norm(implementation, reference, assert_close, dtype, shape, residual, bias):
    x, weight = normal(*shape, dtype=dtype, shift=3), normal(shape[1], dtype=dtype)
    offset = normal(shape[1], dtype=dtype, shift=1) if bias else None
    stream = normal(*shape, dtype=dtype) if residual else None
    total = x if stream is None else x + stream
    expected = reference.layer_norm(
        total.double(), weight.double(), None if offset is None else offset.double(), eps=1e-5
    )
    kept = x.clone()
    normed = layer_norm(x, weight, offset, eps=1e-5, residual=stream)
    if shape[1] > 1 or bias:
        assert_close(normed, expected)
    assert torch.equal(x, kept)
    if stream is not None:
        assert_close(stream, total)


@DTYPES
@SHAPES
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
def test_rms_norm(implementation, reference, assert_close, dtype, shape, residual):
    x, weight = normal(*shape, dtype=dtype, shift=1), normal(shape[1], dtype=dtype)
    stream = normal(*shape, dtype=dtype) if residual else None
    total = x if stream is None else x + stream
    out = torch.full_like(x, float("nan"))
    assert rms_norm(x, weight, eps=1e-6, residual=stream, out=out).data_ptr() == out.data_ptr()
    assert_close(out, reference.rms_norm(total.double(), weight.double(), eps=1e-6))
    if stream is not None:
        assert_close(stream, total)


@DTYPES
@pytest.mark.parametrize("kind", ACTIVATION_KINDS)
@pytest.mark.parametrize("gated", [False, True], ids=["", "gated"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_activation(implementation, reference, assert_close, dtype, kind, gated, bias):
    x = normal(7, 2 * 1037, dtype=dtype) * 3
    offset = normal(2 * 1037, dtype=dtype) if bias else None
    expected = reference.activation(x.double(), kind, bias=None if offset is None else offset.double(), gated=gated)
    assert_close(activation(x, kind, bias=offset, gated=gated), expected)


def test_activations_are_torchs(reference):
    x = torch.linspace(-9, 9, 999, dtype=torch.float64)[None]
    for kind, function in {
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "silu": functional.silu,
        "relu": functional.relu,
    }.items():
        torch.testing.assert_close(reference.activation(x, kind, bias=None, gated=False), function(x))


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match="'swish'"):
        activation(torch.zeros(1, 2), "swish")
    with pytest.raises(ValueError, match="even"):
        activation(torch.zeros(1, 3), "silu", gated=True)
    with pytest.raises(ValueError, match="'median'"):
        pooling(torch.zeros(1, 3), torch.zeros(1), torch.ones(1), kind="median", normalize=False)
    with pytest.raises(ValueError, match="'batch_norm'"):
        embedding(torch.zeros(1), torch.zeros(1, 3), norm="batch_norm")


@DTYPES
@pytest.mark.parametrize("norm", [None, "layer_norm", "rms_norm"])
@pytest.mark.parametrize("parts", ["word", "word position", "word position type", "word type of 0"])
def test_embedding(implementation, reference, assert_close, dtype, norm, parts):
    tokens, width = 17, 96
    ids = torch.randint(0, 50, (tokens,), dtype=torch.int32)
    tables = {"word": normal(50, width, dtype=dtype)}
    indices = {}
    if "position" in parts:
        tables["position"] = normal(30, width, dtype=dtype)
        indices["positions"] = torch.randint(0, 30, (tokens,), dtype=torch.int32)
    if "type" in parts:
        tables["type"] = normal(2, width, dtype=dtype)
    if parts.endswith("type"):
        indices["type_ids"] = torch.randint(0, 2, (tokens,), dtype=torch.int32)
    if norm:
        tables["weight"] = normal(width, dtype=dtype)
    if norm == "layer_norm":
        tables["bias"] = normal(width, dtype=dtype)
    scale = 1.5 if parts == "word" else 1.0
    wide = {"position": None, "type": None, "weight": None, "bias": None}
    wide |= {name: table.double() for name, table in tables.items()}
    wide["type_table"] = wide.pop("type")
    wide |= {"positions": None, "type_ids": None} | indices
    expected = reference.embedding(wide.pop("word"), ids, **wide, scale=scale, eps=1e-12, norm=norm)
    assert_close(embedding(ids, **tables, **indices, scale=scale, eps=1e-12, norm=norm), expected)


@DTYPES
@pytest.mark.parametrize("kind", POOLING_KINDS)
@pytest.mark.parametrize("normalize", [False, True], ids=["", "normalized"])
@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
def test_pooling(implementation, reference, assert_close, dtype, kind, normalize, padded):
    length = torch.tensor([17, 0, 1, 111], dtype=torch.int32)
    start = (length.cumsum(0) - length).int()
    hidden = normal(int(length.sum()), 100, dtype=dtype)
    expected = reference.pooling(hidden.double(), start, length, kind=kind, normalize=normalize)
    if padded:
        hidden = pad(hidden, start, length, longest=120, value=float("nan"))
        start = torch.arange(4, dtype=torch.int32) * 120
    pooled = pooling(hidden, start, length, kind=kind, normalize=normalize)
    assert pooled.dtype == torch.float32
    assert_close(pooled, expected, dtype)
    assert (pooled[1] == 0).all()


@pytest.mark.parametrize("kind", POOLING_KINDS)
def test_pooling_of_no_tokens_at_all(implementation, kind):
    none = torch.zeros(3, dtype=torch.int32)
    assert torch.equal(pooling(torch.zeros(0, 5), none, none, kind=kind, normalize=True), torch.zeros(3, 5))
