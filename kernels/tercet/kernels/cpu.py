"""The ops as a CPU serves with them: packed, on torch's fused kernels; attention is in `cpu_attention.py`.

`tercet.kernels.ops` documents the arguments. No padding is computed with, and none of it can leak: it is never read.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from tercet.kernels.cpu_attention import attention, attention_plan, paged_attention
from tercet.kernels.philox import uniform
from tercet.kernels.reference import beam_step, decode_inputs, next_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from tercet.kernels.ops import ActivationKind, NormKind, PoolingKind

__all__ = [
    "activation", "attention", "attention_plan", "beam_step", "decode_inputs", "embedding", "head_topk", "kv_write",
    "layer_norm", "next_tokens", "pad", "paged_attention", "pooling", "rms_norm", "sample", "top_logprobs", "unpad",
]  # fmt: skip

HEAD_TOKENS = 8192  # of the vocabulary whose logits are held at once
CANDIDATES = 256  # so many likeliest tokens are sorted first; the whole vocabulary only if they don't reach top_p


def _places(start: Tensor, length: Tensor) -> Tensor:
    """Where every real token lies in storage, row by row."""
    length = length.long()
    first = length.cumsum(0) - length
    return torch.arange(int(length.sum())) + torch.repeat_interleave(start.long() - first, length)


def _padded_start(length: Tensor, longest: int) -> Tensor:
    return torch.arange(len(length)) * longest


def pad(packed: Tensor, start: Tensor, length: Tensor, *, longest: int, value: float) -> Tensor:
    padded = packed.new_full((len(start) * longest, *packed.shape[1:]), value)
    padded[_places(_padded_start(length, longest), length)] = packed[_places(start, length)]
    return padded


def unpad(padded: Tensor, start: Tensor, length: Tensor, *, longest: int, tokens: int) -> Tensor:
    packed = padded.new_zeros((tokens, *padded.shape[1:]))
    packed[_places(start, length)] = padded[_places(_padded_start(length, longest), length)]
    return packed


def _rotate_(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> None:
    """Rotates x [T, H, D] in place by angles [T, 1, rotary_dim / 2]."""
    half = cos.shape[-1]
    a, b = (x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]) if interleaved else x[..., : 2 * half].split(half, -1)
    turned = a * cos - b * sin
    b.copy_(b * cos + a * sin)
    a.copy_(turned)


def kv_write(
    k: Tensor, v: Tensor | None, q: Tensor | None, *, k_pages: Tensor | None, v_pages: Tensor | None,
    slots: Tensor | None, positions: Tensor | None, cos: Tensor | None, sin: Tensor | None, interleaved: bool,
    q_norm: Tensor | None, k_norm: Tensor | None, eps: float,
) -> None:  # fmt: skip
    if q is not None and q_norm is not None:
        rms_norm(q, q_norm, eps=eps, residual=None, out=q)
    if k_norm is not None:
        k = rms_norm(k, k_norm, eps=eps, residual=None, out=k if k_pages is None else None)
    if positions is not None and cos is not None and sin is not None:
        cos, sin = (functional.embedding(positions, table)[:, None] for table in (cos, sin))
        if q is not None:
            _rotate_(q, cos, sin, interleaved=interleaved)
        k = k if k_pages is None or k_norm is not None else k.clone()
        _rotate_(k, cos, sin, interleaved=interleaved)
    if k_pages is None or v_pages is None or slots is None or v is None:
        return
    where = slots.long()
    kept = where >= 0
    if not bool(kept.all()):
        where, k, v = where[kept], k[kept], v[kept]
    k_pages.flatten(0, 1).index_copy_(0, where, k)
    v_pages.flatten(0, 1).index_copy_(0, where, v)


def _store(value: Tensor, out: Tensor | None) -> Tensor:
    return value if out is None else out.copy_(value)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float, residual: Tensor | None, out: Tensor | None
) -> Tensor:
    x = x if residual is None else residual.add_(x)
    return _store(functional.layer_norm(x, (x.shape[-1],), weight, bias, eps), out)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, residual: Tensor | None, out: Tensor | None) -> Tensor:
    x = x if residual is None else residual.add_(x)
    # torch fuses it in float32 alone
    return _store(functional.rms_norm(x.float(), (x.shape[-1],), weight.float(), eps).to(x.dtype), out)


def activation(x: Tensor, kind: ActivationKind, *, bias: Tensor | None, gated: bool) -> Tensor:
    x = x if bias is None else x + bias
    inner, gate = x.chunk(2, dim=-1) if gated else (x, None)
    if kind == "silu":
        value = functional.silu(inner)
    elif kind == "relu":
        value = functional.relu(inner)
    else:
        value = functional.gelu(inner, approximate="tanh" if kind == "gelu_tanh" else "none")
    return value if gate is None else value.mul_(gate)


def embedding(
    word: Tensor, token_ids: Tensor, *, positions: Tensor | None, position: Tensor | None, type_ids: Tensor | None,
    type_table: Tensor | None, scale: float, weight: Tensor | None, bias: Tensor | None, eps: float,
    norm: NormKind | None,
) -> Tensor:  # fmt: skip
    value = functional.embedding(token_ids, word)
    if scale != 1:
        value *= scale
    if position is not None and positions is not None:
        value += functional.embedding(positions, position)
    if type_table is not None:
        value += type_table[0] if type_ids is None else functional.embedding(type_ids, type_table)
    if weight is None or norm is None:
        return value
    if norm == "layer_norm":
        return layer_norm(value, weight, bias, eps=eps, residual=None, out=None)
    return rms_norm(value, weight, eps=eps, residual=None, out=None)


def pooling(hidden: Tensor, start: Tensor, length: Tensor, *, kind: PoolingKind, normalize: bool) -> Tensor:
    counts = length.tolist()
    if kind in ("mean", "max"):
        pooled = torch.zeros(len(counts), hidden.shape[1])
        # Row by row: torch reduces segments several times as slowly.
        for out, first, count in zip(pooled, start.tolist(), counts, strict=True):
            if count:
                tokens = hidden[first : first + count]
                out.copy_(tokens.mean(0, dtype=torch.float32) if kind == "mean" else tokens.amax(0))
    else:
        place = start if kind == "cls" else start + length - 1
        if 0 not in counts:
            pooled = hidden.index_select(0, place).float()
        else:
            real = length.nonzero().flatten()
            pooled = torch.zeros(len(counts), hidden.shape[1])
            pooled.index_copy_(0, real, hidden.index_select(0, place.index_select(0, real)).float())
    if normalize:  # in place, and by fewer calls than functional.normalize makes
        pooled /= torch.linalg.vector_norm(pooled, dim=-1, keepdim=True).clamp_min_(1e-12)
    return pooled


def sample(
    logits: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seed: Tensor,
    sample_index: Tensor, position: Tensor,
) -> Tensor:  # fmt: skip
    highest, tokens = logits.max(-1)
    finite = highest.isfinite()
    tokens[~finite] = logits.shape[1]
    sampled = ((temperature > 0) & finite).nonzero().flatten()
    if len(sampled) == 0:
        return tokens
    draws = uniform(seed[sampled], sample_index[sampled], position[sampled]).tolist()
    settings = zip(sampled.tolist(), *(x[sampled].tolist() for x in (temperature, top_k, top_p, min_p)), strict=True)
    for (row, heat, k, p, floor), draw in zip(settings, draws, strict=True):
        tokens[row] = _draw((logits[row] - highest[row]).div_(heat), k, p, floor, draw)
    return tokens


def _draw(scores: Tensor, top_k: int, top_p: float, min_p: float, draw: float) -> int:
    """The inverse distribution function at `draw` over the tokens of scores [V], at most 0, that may be drawn."""
    tokens = None
    if 0 < top_k < len(scores):
        tokens = (scores >= scores.topk(top_k).values[-1]).nonzero().squeeze(1)
        scores = scores[tokens]
    weights = scores.exp()
    if top_p < 1:
        weights = _top_p(weights, top_p)
    if min_p > 0:
        weights.masked_fill_(weights < min_p, 0)
    mass = weights.cumsum(0, dtype=torch.float64)
    place = int(torch.searchsorted(mass, draw * mass[-1], right=True))
    return place if tokens is None else int(tokens[place])


def _top_p(weights: Tensor, top_p: float) -> Tensor:
    """Weights [V] with those outside the smallest likeliest set of mass top_p set to 0; equals in index order."""
    target = top_p * float(weights.sum(dtype=torch.float64))
    values = weights.topk(min(CANDIDATES, len(weights))).values
    if float(values.sum(dtype=torch.float64)) < target:
        values = weights.sort(descending=True).values
    mass = values.cumsum(0, dtype=torch.float64)
    last = int(((mass - values) < target).sum().clamp_min(1)) - 1  # the likeliest stays, however small top_p is
    least = values[last]
    ties = (weights == least).nonzero().flatten()
    kept_ties = last + 1 - int((values > least).sum())
    kept = weights > least
    kept[ties[:kept_ties]] = True
    return weights.masked_fill_(~kept, 0)


def head_topk(hidden: Tensor, weight: Tensor, *, k: int, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    tiles = zip(weight.split(HEAD_TOKENS), repeat(None) if bias is None else bias.split(HEAD_TOKENS), strict=False)
    found = [_best(functional.linear(hidden, part, offset).float(), k) for part, offset in tiles]
    values = torch.cat([best for best, _ in found], 1)
    ids = torch.cat([places + tile * HEAD_TOKENS for tile, (_, places) in enumerate(found)], 1)
    values, order = values.sort(descending=True, stable=True)  # those of lower ids are further left
    return values[:, :k].contiguous(), ids.gather(1, order[:, :k]).int()


def top_logprobs(logits: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    more, ids = logits.topk(min(k + 1, logits.shape[1]))
    values, ids = more[:, :k], ids[:, :k]
    cut = (more[:, k:] == values[:, -1:]).nonzero()[:, 0]  # rows with more that equal the last one
    if len(cut):
        values[cut], ids[cut] = _best(logits[cut], k)
    ids, order = ids.sort(-1)
    values, order = values.gather(1, order).sort(descending=True, stable=True)
    return values - logits.logsumexp(-1, keepdim=True), ids.gather(1, order).int()


def _best(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest of each row of logits [N, tile], fewer where there are no more, falling and equals by place."""
    if k == 1:
        return logits.max(-1, keepdim=True)
    values = logits.topk(min(k, logits.shape[1])).values
    places = torch.empty_like(values, dtype=torch.int64)
    for row, (scores, least) in enumerate(zip(logits, values[:, -1], strict=True)):
        candidates = (scores.isnan() if least.isnan() else ~(scores < least)).nonzero().squeeze(1)
        order = scores[candidates].sort(descending=True, stable=True).indices
        places[row] = candidates[order[: values.shape[1]]]
    return values, places
