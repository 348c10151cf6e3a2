"""Who competes in attention: ours on packed, padded and paged keys; SDPA's backends, varlen_attn and FlexAttention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.kernels.batches import BIAS_DISTANCE
from benchmarks.kernels.contest import OURS, Contestants
from tercet.kernels import attention

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from benchmarks.kernels.batches import Batch, Case

PADDED, WITHOUT_BIAS, VARLEN, FLEX = "tercet, padded", "tercet without bias", "varlen_attn", "FlexAttention"
BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}
ON_CPU = ("SDPA flash", "SDPA math")


def contestants(case: Case, batch: Batch, *, rehearsal: bool) -> Contestants:
    """All that may be able to compute the case, ours first."""
    found: Contestants = {OURS: ours(case, batch)}
    on_gpu = case.device == "cuda"
    for name, backend in BACKENDS.items():
        if on_gpu or name in ON_CPU:
            found[name] = sdpa(case, batch, backend)
    if on_gpu or rehearsal:
        found[FLEX] = flex(case, batch)
    if not case.bias and on_gpu:
        found[VARLEN] = varlen(case, batch)
    if case.bias:
        found[WITHOUT_BIAS] = ours(case, batch, bias=False)
    if case.median is not None:
        found[PADDED] = ours_padded(case, batch)
    return found


def ours(case: Case, batch: Batch, *, bias: bool = True) -> Callable[[], Tensor]:
    """On packed tokens; keys flat, or in pages where the case says so."""
    rows: dict[str, Any] = {
        "q_start": batch.q_start, "q_length": batch.q_length, "kv_length": batch.kv_length,
        "longest_q": batch.longest_q, "longest_kv": case.longest, "causal": case.causal,
        "bias": batch.bias if bias else None,
    }  # fmt: skip
    if batch.paged:
        k, v, table = batch.paged
        return lambda: attention(batch.q, k, v, page_table=table, **rows)
    return lambda: attention(batch.q, batch.k, batch.v, kv_start=batch.kv_start, **rows)


def ours_padded(case: Case, batch: Batch) -> Callable[[], Tensor]:
    """The same function on padded storage, [B * S, H, D]."""
    q, k, v = (x.transpose(1, 2).flatten(0, 1).contiguous() for x in batch.padded)
    row = torch.arange(case.rows, dtype=torch.int32, device=case.device)
    rows: dict[str, Any] = {
        "q_start": row * batch.longest_q, "q_length": batch.q_length, "longest_q": batch.longest_q,
        "kv_start": row * case.longest, "kv_length": batch.kv_length, "longest_kv": case.longest,
        "causal": case.causal, "bias": batch.bias,
    }  # fmt: skip
    return lambda: attention(q, k, v, **rows).unflatten(0, (case.rows, batch.longest_q)).transpose(1, 2)


def sdpa(case: Case, batch: Batch, backend: SDPBackend) -> Callable[[], Tensor]:
    """On padded tensors, with a mask where the case needs one: [B, H, S_q, D]."""
    mask: Any = batch.mask
    lower_right = case.causal and mask is None and batch.longest_q != case.longest
    if lower_right:
        mask = causal_lower_right(batch.longest_q, case.longest)

    def run() -> Tensor:
        with sdpa_kernel(backend):
            return functional.scaled_dot_product_attention(
                *batch.padded,
                attn_mask=mask,
                is_causal=case.causal and mask is None,
                enable_gqa=case.heads != case.kv_heads,
            )

    return run


def varlen(case: Case, batch: Batch) -> Callable[[], Tensor]:
    """On packed tokens, [T, H, D]; grouped heads are repeated beforehand, which costs it memory traffic alone."""
    from torch.nn.attention.varlen import varlen_attn  # here: builds of torch without CUDA may lack it

    q_ends, kv_ends = (
        functional.pad(length.cumsum(0, dtype=torch.int32), (1, 0)) for length in (batch.q_length, batch.kv_length)
    )
    k, v = (x.repeat_interleave(case.heads // case.kv_heads, dim=1) for x in (batch.k, batch.v))
    window = (-1, 0) if case.causal else (-1, -1)
    attend: Any = varlen_attn
    return lambda: attend(batch.q, k, v, q_ends, kv_ends, batch.longest_q, case.longest, window_size=window)


def compiled(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """torch.compile for these shapes alone on a GPU; on a CPU the function itself."""
    if device != "cuda":
        return function
    torch.compiler.reset()  # one function compiled for many shapes would fall back to eager after a few
    return torch.compile(function, dynamic=False)


def flex(case: Case, batch: Batch) -> Callable[[], Tensor]:
    """On padded tensors, [B, H, S_q, D]: hidden tiles are left out by a block mask, the bias is read inside."""
    length, shift = batch.kv_length, batch.kv_length - batch.q_length

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del head
        inside = key < length[row]
        return inside & (key <= query + shift[row]) if case.causal else inside

    def biased(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = (key - query - shift[row]).clamp(-BIAS_DISTANCE, BIAS_DISTANCE)
        return score + scores[head, distance + BIAS_DISTANCE]

    scores: Any = batch.bias
    # Nothing is hidden where all rows are full: the kernel without a mask is the faster one.
    needed = case.causal or case.median is not None
    mask = create_block_mask(visible, case.rows, None, batch.longest_q, case.longest, case.device) if needed else None
    attend = compiled(flex_attention, case.device)
    return lambda: attend(
        *batch.padded, block_mask=mask, score_mod=None if scores is None else biased,
        enable_gqa=case.heads != case.kv_heads,
    )  # fmt: skip
