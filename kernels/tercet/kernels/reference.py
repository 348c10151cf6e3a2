"""Every op in plain torch, row by row where that is clearer: the truth the others are tested against.

Floats are computed in float32, or in float64 when the input is. `tercet.kernels.ops` documents the arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from tercet.kernels.decode_ops import DecodeInputs
from tercet.kernels.philox import uniform
from tercet.kernels.reference_beams import beam_step

if TYPE_CHECKING:
    from torch import Tensor

    from tercet.kernels.ops import ActivationKind, NormKind, PoolingKind

__all__ = [
    "activation", "attention", "attention_plan", "beam_step", "decode_inputs", "embedding", "head_topk", "kv_write",
    "layer_norm", "next_tokens", "pad", "paged_attention", "pooling", "rms_norm", "sample", "top_logprobs", "unpad",
]  # fmt: skip


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, q_start: Tensor, q_length: Tensor, kv_length: Tensor, longest_q: int,
    longest_kv: int, kv_start: Tensor | None = None, page_table: Tensor | None = None,
    key_rows: Tensor | None = None, causal: bool, window: tuple[int, int] | None, scale: float, bias: Tensor | None,
    out: Tensor | None, plan: None = None,
) -> Tensor:  # fmt: skip
    out = torch.zeros_like(q) if out is None else out.zero_()
    for row, (start, queries, keys) in enumerate(
        zip(q_start.tolist(), q_length.tolist(), kv_length.tolist(), strict=True)
    ):
        if queries == 0 or keys == 0:
            continue
        if page_table is None:
            first = int(kv_start[row])  # pyright: ignore[reportOptionalSubscript] - one of the two is given
            k_row, v_row = (x[first : first + keys] for x in (k, v))
        else:
            places = torch.arange(keys, device=q.device)
            rows = torch.full_like(places, row) if key_rows is None else key_rows[row, :keys].long()
            pages = page_table[rows, places // k.shape[1]].long()
            k_row, v_row = (x[pages, places % k.shape[1]] for x in (k, v))
        group = q.shape[1] // k.shape[-2]
        k_row, v_row = (_wide(x).repeat_interleave(group, dim=1) for x in (k_row, v_row))
        q_row = _wide(q[start : start + queries])
        scores = torch.einsum("qhd,khd->hqk", q_row, k_row) * scale
        positions = torch.arange(keys, device=q.device)
        distance = positions - positions.new_tensor(range(keys - queries, keys))[:, None]  # key - query, [q, k]
        if bias is not None:
            limit = bias.shape[1] // 2
            scores = scores + bias[:, distance.clamp(-limit, limit) + limit]
        visible = torch.ones_like(distance, dtype=torch.bool)
        if causal:
            visible &= distance <= 0
        if window is not None:
            visible &= (distance >= -window[0]) & (distance <= window[1])
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1).masked_fill(~visible, 0)
        out[start : start + queries] = torch.einsum("hqk,khd->qhd", weights, v_row).to(q.dtype)
    return out


def attention_plan(q: Tensor, k: Tensor, **rows: object) -> None:
    """None: row by row there is nothing to share."""


def paged_attention(q: Tensor, k: Tensor, v: Tensor, *, plan: None, **options: Any) -> Tensor:
    return attention(q, k, v, **options)


def pad(packed: Tensor, start: Tensor, length: Tensor, *, longest: int, value: float) -> Tensor:
    padded = packed.new_full((len(start) * longest, *packed.shape[1:]), value)
    for row, (first, count) in enumerate(zip(start.tolist(), length.tolist(), strict=True)):
        padded[row * longest : row * longest + count] = packed[first : first + count]
    return padded


def unpad(padded: Tensor, start: Tensor, length: Tensor, *, longest: int, tokens: int) -> Tensor:
    packed = padded.new_zeros((tokens, *padded.shape[1:]))
    for row, (first, count) in enumerate(zip(start.tolist(), length.tolist(), strict=True)):
        packed[first : first + count] = padded[row * longest : row * longest + count]
    return packed


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Rotates x [T, H, D] by angles [T, rotary_dim / 2]."""
    cos, sin = cos[:, None], sin[:, None]
    half = cos.shape[-1]
    turned, rest = _wide(x[..., : 2 * half]), x[..., 2 * half :]
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.split(half, dim=-1)
    parts = a * cos - b * sin, b * cos + a * sin
    turned = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
    return torch.cat((turned.to(x.dtype), rest), -1)


def kv_write(
    k: Tensor, v: Tensor | None, q: Tensor | None, *, k_pages: Tensor | None, v_pages: Tensor | None,
    slots: Tensor | None, positions: Tensor | None, cos: Tensor | None, sin: Tensor | None, interleaved: bool,
    q_norm: Tensor | None, k_norm: Tensor | None, eps: float,
) -> None:  # fmt: skip
    if q is not None and q_norm is not None:
        q.copy_(rms_norm(q, q_norm, eps=eps))
    rotated = k if k_norm is None else rms_norm(k, k_norm, eps=eps)
    if positions is not None and cos is not None and sin is not None:
        angles = cos[positions.long()], sin[positions.long()]
        rotated = _rotate(rotated, *angles, interleaved=interleaved)
        if q is not None:
            q.copy_(_rotate(q, *angles, interleaved=interleaved))
    if k_pages is None or v_pages is None or slots is None or v is None:
        k.copy_(rotated)
        return
    kept = (slots >= 0).nonzero().squeeze(1)
    where = slots[kept].long()
    k_pages.flatten(0, 1)[where] = rotated[kept]
    v_pages.flatten(0, 1)[where] = v[kept]


def _add_residual(x: Tensor, residual: Tensor | None) -> Tensor:
    return x if residual is None else residual.add_(x)


def _store(value: Tensor, out: Tensor | None, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if out is None else out.copy_(value)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float, residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    wide = _wide(_add_residual(x, residual))
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight
    return _store(normed if bias is None else normed + bias, out, x.dtype)


def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float, residual: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    wide = _wide(_add_residual(x, residual))
    return _store(wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight, out, x.dtype)


def activation(x: Tensor, kind: ActivationKind, *, bias: Tensor | None, gated: bool) -> Tensor:
    wide = _wide(x) if bias is None else _wide(x) + bias
    inner, gate = wide.chunk(2, dim=-1) if gated else (wide, None)
    if kind == "gelu":
        value = inner * 0.5 * (1 + torch.erf(inner * 2**-0.5))
    elif kind == "gelu_tanh":  # Hendrycks and Gimpel, 2016
        value = inner * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)))
    elif kind == "silu":
        value = inner * torch.sigmoid(inner)
    else:
        value = inner.clamp_min(0)
    return (value if gate is None else value * gate).to(x.dtype)


def embedding(
    word: Tensor, token_ids: Tensor, *, positions: Tensor | None, position: Tensor | None, type_ids: Tensor | None,
    type_table: Tensor | None, scale: float, weight: Tensor | None, bias: Tensor | None, eps: float,
    norm: NormKind | None,
) -> Tensor:  # fmt: skip
    value = _wide(word[token_ids.long()]) * scale
    if position is not None and positions is not None:
        value = value + position[positions.long()]
    if type_table is not None:
        value = value + (type_table[0] if type_ids is None else type_table[type_ids.long()])
    if norm == "layer_norm" and weight is not None:
        value = layer_norm(value, weight, bias, eps=eps)
    elif norm == "rms_norm" and weight is not None:
        value = rms_norm(value, weight, eps=eps)
    return value.to(word.dtype)


def pooling(hidden: Tensor, start: Tensor, length: Tensor, *, kind: PoolingKind, normalize: bool) -> Tensor:
    wide = _wide(hidden)
    pooled = wide.new_zeros((len(start), hidden.shape[1]))
    for row, (first, count) in enumerate(zip(start.tolist(), length.tolist(), strict=True)):
        tokens = wide[first : first + count]
        if count == 0:
            continue
        if kind == "mean":
            pooled[row] = tokens.mean(0)
        elif kind == "max":
            pooled[row] = tokens.amax(0)
        else:
            pooled[row] = tokens[0 if kind == "cls" else -1]
    return functional.normalize(pooled, dim=-1) if normalize else pooled


def sample(
    logits: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seed: Tensor,
    sample_index: Tensor, position: Tensor,
) -> Tensor:  # fmt: skip
    draws = uniform(seed, sample_index, position)
    tokens = logits.argmax(-1)
    for row, heat in enumerate(temperature):
        highest = logits[row].max()
        if not highest.isfinite():
            tokens[row] = logits.shape[1]
            continue
        if heat <= 0:
            continue
        scores = _wide(logits[row] - highest) / heat
        kept = kept_tokens(scores, int(top_k[row]), float(top_p[row]), float(min_p[row]))
        mass = torch.where(kept, scores.exp(), 0).double().cumsum(0)
        tokens[row] = torch.searchsorted(mass, draws[row].double() * mass[-1], right=True)
    return tokens


def kept_tokens(scores: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Which tokens of scores [V] may be drawn, as bool [V]."""
    kept = torch.ones_like(scores, dtype=torch.bool)
    if 0 < top_k < len(scores):
        kept &= scores >= scores.topk(top_k).values[-1]
    probabilities = (scores - scores.max()).exp().double()
    if top_p < 1:
        order = scores.argsort(descending=True, stable=True)
        mass = torch.where(kept, probabilities, 0)[order]
        before = mass.cumsum(0) - mass
        before[0] = -1  # the likeliest stays, however small top_p is
        kept[order] &= before < top_p * mass.sum()
    if min_p > 0:
        kept &= probabilities >= min_p
    return kept


def head_topk(hidden: Tensor, weight: Tensor, *, k: int, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    logits = functional.linear(_wide(hidden), _wide(weight), None if bias is None else _wide(bias)).to(hidden.dtype)
    values, ids = _wide(logits).sort(descending=True, stable=True)
    return values[:, :k], ids[:, :k].int()


def decode_inputs(
    length: Tensor, active: Tensor, page_table: Tensor, *, page_size: int, cross_length: Tensor | None,
    head: Tensor | None, holders: Tensor | None,
) -> DecodeInputs:  # fmt: skip
    positions = length * active
    kv_length = positions + active
    page = page_table.gather(1, (positions // page_size).long()[:, None])[:, 0]
    slots = torch.where(active > 0, page * page_size + positions % page_size, -1)
    if head is not None and holders is not None:
        own = (head < 0)[:, None] & (torch.arange(holders.shape[1], device=head.device) < kv_length[:, None])
        every = torch.arange(len(head), dtype=holders.dtype, device=head.device)[:, None]
        holders.copy_(torch.where(own, every, holders))
    length += active
    return DecodeInputs(positions, kv_length, slots, None if cross_length is None else cross_length * active)


def next_tokens(
    choice: Tensor, ids: Tensor | None, *, vocabulary: int, last_token: Tensor | None, lanes: Tensor | None,
    active: Tensor | None,
) -> Tensor:  # fmt: skip
    if ids is None:
        tokens = choice
    elif choice.is_floating_point():
        tokens = torch.where(choice[:, 0].isfinite(), ids[:, 0], vocabulary)
    else:
        known = choice < ids.shape[1]
        tokens = torch.where(known, ids.gather(1, torch.where(known, choice, 0)[:, None])[:, 0], vocabulary)
    if last_token is not None:
        where = torch.arange(len(tokens), device=tokens.device) if lanes is None else lanes.long()
        told = tokens.clamp(max=vocabulary - 1).to(last_token.dtype)
        last_token[where] = told if active is None else torch.where(active > 0, told, last_token[where])
    return tokens.long()


def top_logprobs(logits: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    values, ids = logits.log_softmax(-1).sort(descending=True, stable=True)
    return values[:, :k].contiguous(), ids[:, :k].int()
