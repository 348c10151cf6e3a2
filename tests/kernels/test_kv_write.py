"""Rotary embedding and the write into pages, against the naive reference in float64."""

from __future__ import annotations

import pytest
import torch

from tercet.kernels import kv_write

TOKENS = 9
POSITIONS = torch.tensor([0, 1, 2, 40, 41, 7, 5, 3, 63], dtype=torch.int32)
SLOTS = torch.tensor([3, -1, 5, 6, 19, 0, 1, -1, 12], dtype=torch.int32)


def inputs(dtype, *, heads=4, kv_heads=2, head_dim=16, rotary_dim=16, norms=False):
    angles = torch.rand(64, rotary_dim // 2) * 6
    weights = {name: torch.randn(head_dim).to(dtype) for name in ("q_norm", "k_norm")} | {"eps": 0.1}
    return (weights if norms else {}) | {
        "q": torch.randn(TOKENS, heads, head_dim).to(dtype),
        "k": torch.randn(TOKENS, kv_heads, head_dim).to(dtype),
        "v": torch.randn(TOKENS, kv_heads, head_dim).to(dtype),
        "k_pages": torch.full((5, 4, kv_heads, head_dim), float("nan"), dtype=dtype),
        "v_pages": torch.full((5, 4, kv_heads, head_dim), float("nan"), dtype=dtype),
        "slots": SLOTS,
        "positions": POSITIONS,
        "cos": angles.cos(),
        "sin": angles.sin(),
    }


@pytest.fixture
def check(reference, assert_close):
    """Compares all the tensors that `kv_write` may change."""

    def compare(given: dict, *, interleaved: bool = False) -> None:
        wide = {"q_norm": None, "k_norm": None, "eps": 0.0} | given
        for name, x in wide.items():
            wide[name] = x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        k, v, q = wide.pop("k"), wide.pop("v"), wide.pop("q")
        reference.kv_write(k, v, q, **wide, interleaved=interleaved)
        kv_write(**given, interleaved=interleaved)
        for name, expected in {"q": q, "k": k, "v": v, **wide}.items():
            actual = given.get(name)
            if not isinstance(actual, torch.Tensor) or not actual.is_floating_point():
                continue
            written = expected.isfinite()
            assert torch.equal(actual.isfinite(), written), name
            assert_close(actual[written], expected[written])

    return compare


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("dims", [(16, 16), (80, 80), (96, 24), (64, 20)], ids=lambda dims: f"{dims[1]} of {dims[0]}")
def test_rotates_and_writes(implementation, check, dtype, interleaved, dims):
    check(inputs(dtype, heads=9, kv_heads=3, head_dim=dims[0], rotary_dim=dims[1]), interleaved=interleaved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("pages", [False, True], ids=["", "pages"])
@pytest.mark.parametrize("rotary_dim", [24, 16, None])
def test_norms_each_head_before_it_turns(implementation, check, dtype, interleaved, pages, rotary_dim):
    given = inputs(dtype, heads=9, kv_heads=3, head_dim=24, rotary_dim=rotary_dim or 2, norms=True)
    given |= {} if rotary_dim else {"cos": None, "sin": None, "positions": None}
    given |= {} if pages else {"k_pages": None, "v_pages": None, "slots": None}
    check(given, interleaved=interleaved)


@pytest.mark.parametrize("missing", ["q_norm", "k_norm"])
def test_norms_one_of_the_two(implementation, check, missing):
    check(inputs(torch.float32, norms=True) | {missing: None})


@pytest.mark.parametrize("norms", [False, True], ids=["", "norms"])
@pytest.mark.parametrize("rotary", [False, True], ids=["", "rotary"])
@pytest.mark.parametrize("pages", [False, True], ids=["", "pages"])
def test_slices_of_one_product(implementation, check, rotary, pages, norms):
    """Tokens of q, k and v lie a whole fused row apart, and nothing between them is touched."""
    given = inputs(torch.float32, norms=norms)
    fused = torch.full((TOKENS, 9, 16), 7.0)
    for name, x in zip("qkv", fused[:, :8].split((4, 2, 2), dim=1), strict=True):
        given[name] = x.copy_(given[name])
    given |= {} if rotary else {"cos": None, "sin": None, "positions": None}
    given |= {} if pages else {"k_pages": None, "v_pages": None, "slots": None}
    check(given)
    assert (fused[:, 8] == 7).all()


def test_writes_without_rotating(implementation, check):
    check(inputs(torch.float32) | {"cos": None, "sin": None, "positions": None})


def test_rotates_without_pages(implementation, check):
    check(inputs(torch.float16) | {"k_pages": None, "v_pages": None, "slots": None, "v": None})


def test_keys_alone(implementation, check):
    check(inputs(torch.float32) | {"q": None})


def test_missing_arguments_are_named():
    with pytest.raises(ValueError, match="positions, cos and sin"):
        kv_write(**inputs(torch.float32) | {"positions": None})
    with pytest.raises(ValueError, match="v_pages and slots"):
        kv_write(**inputs(torch.float32) | {"slots": None})
    with pytest.raises(ValueError, match=r"must be \[16\]"):
        kv_write(**inputs(torch.float32), q_norm=torch.ones(8), k_norm=torch.ones(16))


def test_norm_and_rotation_are_qwens(implementation):
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

    given = inputs(torch.float32, norms=True) | {"k_pages": None, "v_pages": None, "slots": None}
    cos, sin = (torch.cat((given[name][POSITIONS], given[name][POSITIONS]), -1)[None] for name in ("cos", "sin"))
    normed = []
    for name in ("q", "k"):
        norm = Qwen3RMSNorm(16, eps=given["eps"])
        norm.weight.data = given[f"{name}_norm"]
        normed.append(norm(given[name]).transpose(0, 1)[None].detach())
    expected = apply_rotary_pos_emb(*normed, cos, sin)
    kv_write(**given)
    for name, value in zip(("q", "k"), expected, strict=True):
        torch.testing.assert_close(given[name], value[0].transpose(0, 1), atol=1e-5, rtol=1e-5)


def test_rotation_is_llamas():
    """The half-split rotation is transformers' `apply_rotary_pos_emb`."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    given = inputs(torch.float32) | {"k_pages": None, "v_pages": None, "slots": None}
    cos, sin = (torch.cat((given[name][POSITIONS], given[name][POSITIONS]), -1)[None] for name in ("cos", "sin"))
    q, k = (given[name].transpose(0, 1)[None].clone() for name in ("q", "k"))
    expected = apply_rotary_pos_emb(q, k, cos, sin)
    kv_write(**given)
    for name, value in zip(("q", "k"), expected, strict=True):
        torch.testing.assert_close(given[name], value[0].transpose(0, 1))
