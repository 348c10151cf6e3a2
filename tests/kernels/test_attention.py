"""Attention in all its forms, against the naive reference in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from support.attention_batches import NAN, Batch, ints, make_batch
from tercet.kernels import attention, paged_attention


@pytest.fixture
def check(reference, assert_close):
    """Compares `attention` with the reference in float64, whatever the dtype."""

    def compare(batch: Batch, op=attention) -> None:
        wide = {name: x.double() if name == "bias" and x is not None else x for name, x in batch.options.items()}
        wide = {"causal": False, "window": None, "scale": None, "bias": None, "out": None} | wide
        wide["scale"] = batch.q.shape[-1] ** -0.5 if wide["scale"] is None else wide["scale"]
        expected = reference.attention(batch.q.double(), batch.k.double(), batch.v.double(), **wide)
        assert_close(op(batch.q, batch.k, batch.v, **batch.options), expected)

    return compare


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("paged", [False, True], ids=["flat", "paged"])
def test_head_dims(implementation, check, head_dim, dtype, paged):
    check(make_batch((17, 0, 63), head_dim=head_dim, dtype=dtype, paged=paged, causal=paged))


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("reach", [None, 9], ids=["", "bias"])
@pytest.mark.parametrize("window", [None, (5, 0), (40, 3)], ids=str)
def test_masks_and_bias(implementation, check, padded, causal, reach, window):
    check(make_batch(padded=padded, causal=causal, reach=reach, window=window, spare=150))


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (9, 3), (8, 1)], ids=str)
def test_grouped_heads(implementation, check, heads):
    check(make_batch((17, 5), heads=heads[0], kv_heads=heads[1]))


def test_cross_attention(implementation, check):
    check(make_batch((1, 17, 0, 3, 9), (63, 1, 5, 0, 111)))


def test_more_queries_than_keys(implementation, check):
    """The first queries of a causal row lie before every key."""
    check(make_batch((17, 63), (5, 40), causal=True))


@pytest.mark.parametrize("reach", [None, 6], ids=["", "bias"])
@pytest.mark.parametrize("window", [None, (20, 0)], ids=str)
def test_chunked_prefill_over_pages(implementation, check, reach, window):
    check(
        make_batch((40, 1, 0, 17), (111, 63, 5, 17), paged=True, causal=True, reach=reach, window=window, page_size=16)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (9, 3), (8, 1)], ids=str)
@pytest.mark.parametrize("window", [None, (20, 0)], ids=str)
@pytest.mark.parametrize("reach", [None, 6], ids=["", "bias"])
def test_decode(implementation, check, heads, dtype, window, reach):
    batch = make_batch(
        (1, 1, 0, 1, 1), (111, 1, 7, 0, 250), heads=heads[0], kv_heads=heads[1], paged=True, dtype=dtype, causal=True,
        window=window, reach=reach, spare=2,
    )  # fmt: skip
    check(batch, paged_attention)


@pytest.mark.parametrize(("heads", "dtype"), [((4, 4), torch.float32), ((9, 3), torch.float16)], ids=str)
@pytest.mark.parametrize("window", [None, (20, 0)], ids=str)
@pytest.mark.parametrize("reach", [None, 6], ids=["", "bias"])
@pytest.mark.parametrize("queries", [1, 5, 40])
def test_keys_in_other_rows_pages(implementation, check, heads, dtype, window, reach, queries):
    """Rows of beams read what they have in common from one row's pages."""
    batch = make_batch(
        (queries, 1, 0, 1, 1), (111, 1, 7, 0, 97), heads=heads[0], kv_heads=heads[1], paged=True, shared=True,
        dtype=dtype, causal=True, window=window, reach=reach, spare=2, padded=queries == 5,
    )  # fmt: skip
    assert batch.k.isnan().any()
    check(batch)


@pytest.mark.parametrize("queries", [1, 9, 40])
def test_key_rows_of_oneself_change_nothing(implementation, queries):
    batch = make_batch((queries, 1, 0), (63, 17, 5), paged=True, causal=True)
    own = torch.arange(3, dtype=torch.int32)[:, None].expand(-1, 63).contiguous()
    plain = attention(batch.q, batch.k, batch.v, **batch.options)
    torch.testing.assert_close(attention(batch.q, batch.k, batch.v, **batch.options, key_rows=own), plain)


@pytest.mark.parametrize("queries", [2, 5, 16])
def test_several_queries_over_splits(implementation, check, queries):
    batch = make_batch((queries, 1, queries - 1), (200, 33, queries), heads=6, kv_heads=2, paged=True, causal=True)
    check(batch, paged_attention)


def test_out_is_written_in_place(implementation, check):
    batch = make_batch((5, 17))
    out = torch.full_like(batch.q, NAN)
    result = attention(batch.q, batch.k, batch.v, **batch.options, out=out)
    assert result.data_ptr() == out.data_ptr()
    assert out.isfinite().all()


@pytest.mark.parametrize("paged", [False, True], ids=["flat", "paged"])
@pytest.mark.parametrize("window", [(2**31 - 1, 2**31 - 1), (2**40, 2), (2, 2**31 - 1)], ids=str)
@pytest.mark.parametrize("queries", [1, 40])
def test_windows_without_bounds(implementation, check, paged, window, queries):
    """Positions plus a window's side don't overflow."""
    check(make_batch((queries, 1), (111, 63), paged=paged, window=window))


@pytest.mark.parametrize("queries", [1, 16, 40])
@pytest.mark.parametrize("paged", [False, True], ids=["flat", "paged"])
def test_slices_of_one_product(implementation, check, queries, paged):
    """q, k and v as the models have them: columns of the fused projection's output, with other columns between."""
    batch = make_batch((queries, 1, 0, queries), (63, 17, 5, 40), heads=6, kv_heads=2, paged=paged, causal=True)
    tokens = max(len(batch.q), len(batch.k))
    fused = torch.full((tokens, 10 * 32), NAN)
    for name, first in (("q", 0), ("k", 6), ("v", 8)):
        x = getattr(batch, name)
        if x.ndim == 3:
            columns = fused[: len(x), first * 32 : first * 32 + x[0].numel()].view(x.shape)
            setattr(batch, name, columns.copy_(x))
    assert not batch.q.is_contiguous()
    check(batch)


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
def test_storage_between_rows_is_zeroed_once_in_every_head(implementation, check, padded):
    """More tiles of storage than the programs that write zeros: each takes several."""
    check(make_batch((3, 0, 1), heads=2, kv_heads=1, head_dim=16, padded=padded, spare=600))


def test_rows_in_any_order(implementation, check):
    """Nothing relies on starts that ascend: empty rows of a graph may all start at 0."""
    batch = make_batch((17, 63, 5))
    for name in ("q_start", "q_length", "kv_start", "kv_length"):
        batch.options[name] = torch.cat((batch.options[name].flip(0), ints([0, 0])))
    check(batch)


def test_empty_batch(implementation):
    batch = make_batch((0, 0), spare=3)
    assert (attention(batch.q, batch.k, batch.v, **batch.options) == 0).all()


@settings(
    max_examples=20, phases=[Phase.generate, Phase.shrink], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 90)), min_size=1, max_size=3),
    paged=st.booleans(),
    causal=st.booleans(),
    window=st.none() | st.tuples(st.integers(0, 50), st.integers(0, 50)),
    reach=st.none() | st.integers(0, 30),
)
def test_any_lengths(implementation, check, rows, paged, causal, window, reach):
    q_lengths, kv_lengths = zip(*rows, strict=True)
    check(
        make_batch(
            q_lengths,
            kv_lengths,
            heads=2,
            kv_heads=1,
            head_dim=16,
            paged=paged,
            causal=causal,
            window=window,
            reach=reach,
        )
    )


def test_bad_shapes_are_named():
    batch = make_batch((5,))
    with pytest.raises(ValueError, match="exactly one"):
        attention(batch.q, batch.k, batch.v, **batch.options, page_table=ints([[0]]))
    with pytest.raises(ValueError, match="don't fit"):
        attention(batch.q, batch.k[..., :8], batch.v[..., :8], **batch.options)
    with pytest.raises(ValueError, match="window"):
        attention(batch.q, batch.k, batch.v, **batch.options, window=(-1, 0))
    with pytest.raises(ValueError, match="max_distance"):
        attention(batch.q, batch.k, batch.v, **batch.options, bias=torch.zeros(4, 4))
    with pytest.raises(ValueError, match="need page_table"):
        attention(batch.q, batch.k, batch.v, **batch.options, key_rows=ints([[0] * 5]))
    for queries in (5, 40):
        paged = make_batch((queries,), (50,), paged=True)
        for key_rows in (ints([[0] * 49]), ints([[0] * 50] * 2)):
            with pytest.raises(ValueError, match=r"key_rows must be \[1, 50 or more\], not \["):
                attention(paged.q, paged.k, paged.v, **paged.options, key_rows=key_rows)
