"""Prefill attention against SDPA's backends and torch's varlen attention."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernels.contest import OURS, contest
from benchmarks.rows import Row
from tercet.kernels import attention, reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from benchmarks.rows import Result, Settings

BIAS_DISTANCE = 128
BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Case:
    """A batch of `rows` sequences of up to `longest` tokens."""

    name: str
    device: str
    dtype: torch.dtype
    rows: int
    longest: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool = False
    median: int | None = None
    """Lengths are log-normal with this median (σ 0.8, at most `longest`); None: all are `longest`."""
    bias: bool = False
    """A relative-position bias, as in T5."""
    bars: tuple[tuple[str, float], ...] = ()

    def lengths(self) -> list[int]:
        """Tokens of each row, seeded."""
        if self.median is None:
            return [self.longest] * self.rows
        chance = random.Random(0)
        return [
            min(max(round(self.median * math.exp(chance.gauss(0, 0.8))), 4), self.longest) for _ in range(self.rows)
        ]


@dataclass(frozen=True)
class Inputs:
    """The same batch packed, as our kernels take it, and padded, as SDPA does."""

    q: Tensor  # [T, H, D]
    k: Tensor  # [T, H_kv, D]
    v: Tensor
    start: Tensor  # [B]
    length: Tensor  # [B]
    bias: Tensor | None  # [H, 2 * BIAS_DISTANCE + 1]
    padded: tuple[Tensor, Tensor, Tensor]  # [B, heads, S, D]
    mask: (
        Tensor | None
    )  # broadcasts to [B, H, S, S]: bool, or the bias with -inf in padding; None where nothing is hidden


def _inputs(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor(case.lengths(), dtype=torch.int32)
    start = lengths.cumsum(0, dtype=torch.int32) - lengths
    tokens = int(lengths.sum())
    q, k, v = (
        torch.randn(tokens, heads, case.head_dim, generator=generator).to(case.device, case.dtype)
        for heads in (case.heads, case.kv_heads, case.kv_heads)
    )
    real = (torch.arange(case.longest) < lengths[:, None]).to(case.device)

    def padded(packed: Tensor) -> Tensor:
        spread = packed.new_zeros(case.rows, case.longest, *packed.shape[1:])
        spread[real] = packed
        return spread.transpose(1, 2).contiguous()

    bias = torch.randn(case.heads, 2 * BIAS_DISTANCE + 1, generator=generator).to(case.device) if case.bias else None
    return Inputs(
        q, k, v, start.to(case.device), lengths.to(case.device), bias, (padded(q), padded(k), padded(v)),
        _mask(case, real, bias),
    )  # fmt: skip


def _mask(case: Case, real: Tensor, bias: Tensor | None) -> Tensor | None:
    visible = real[:, None, None, :]  # [B, 1, 1, S]
    position = torch.arange(case.longest, device=case.device)
    distance = position[None, :] - position[:, None]  # [S, S], key - query
    if bias is not None:
        scores = bias[:, distance.clamp(-BIAS_DISTANCE, BIAS_DISTANCE) + BIAS_DISTANCE].to(case.dtype)  # [H, S, S]
        return torch.where(visible & (distance <= 0) if case.causal else visible, scores, -math.inf)
    if case.median is None:
        return None
    return visible & (distance <= 0) if case.causal else visible


def _sdpa(case: Case, inputs: Inputs, backend: SDPBackend) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with sdpa_kernel(backend):
            return functional.scaled_dot_product_attention(
                *inputs.padded,
                attn_mask=inputs.mask,
                is_causal=case.causal and inputs.mask is None,
                enable_gqa=case.heads != case.kv_heads,
            )

    return run


def _varlen(case: Case, inputs: Inputs) -> Callable[[], Tensor]:
    from torch.nn.attention.varlen import varlen_attn  # here: builds of torch without CUDA may lack it

    ends = functional.pad(inputs.length.cumsum(0, dtype=torch.int32), (1, 0))
    k, v = (tensor.repeat_interleave(case.heads // case.kv_heads, dim=1) for tensor in (inputs.k, inputs.v))
    window = (-1, 0) if case.causal else (-1, -1)

    def run() -> Tensor:
        answer = varlen_attn(inputs.q, k, v, ends, ends, case.longest, case.longest, window_size=window)
        return answer[0] if isinstance(answer, tuple) else answer

    return run


def _ours(case: Case, inputs: Inputs) -> Callable[[], Tensor]:
    return lambda: attention(
        inputs.q, inputs.k, inputs.v, q_start=inputs.start, kv_start=inputs.start, q_length=inputs.length,
        kv_length=inputs.length, longest_q=case.longest, longest_kv=case.longest, causal=case.causal, bias=inputs.bias,
    )  # fmt: skip


def _truth(case: Case, inputs: Inputs, answer: Tensor) -> tuple[Tensor, Tensor]:
    """The longest row's first group of heads, by the naive reference in float64."""
    row = int(inputs.length.argmax())
    start, length = int(inputs.start[row]), int(inputs.length[row])
    group = case.heads // case.kv_heads
    given = (
        answer[start : start + length, :group] if answer.dim() == 3 else answer[row, :group, :length].transpose(0, 1)
    )
    first = torch.zeros(1, dtype=torch.int32, device=case.device)
    right = reference.attention(
        inputs.q[start : start + length, :group].double().contiguous(),
        inputs.k[start : start + length, :1].double().contiguous(),
        inputs.v[start : start + length, :1].double().contiguous(),
        q_start=first, kv_start=first, q_length=first + length, kv_length=first + length, longest_q=length,
        longest_kv=length, causal=case.causal, scale=case.head_dim**-0.5, window=None, out=None,
        bias=None if inputs.bias is None else inputs.bias[:group],
    )  # fmt: skip
    return given, right


def _measure(case: Case, settings: Settings) -> Result:
    torch.set_num_threads(settings.threads)
    inputs = _inputs(case)
    contestants = {OURS: _ours(case, inputs)}
    on_gpu = case.device == "cuda"
    for name, backend in BACKENDS.items():
        if on_gpu or backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):  # the CPU has these two
            contestants[name] = _sdpa(case, inputs, backend)
    if on_gpu and not case.bias:
        contestants["varlen_attn"] = _varlen(case, inputs)
    lengths = case.lengths()
    pairs = sum(length * (length + 1) // 2 if case.causal else length**2 for length in lengths)
    fill = sum(lengths) / (case.rows * case.longest)
    return contest(
        f"{case.rows} rows of {'up to ' if case.median else ''}{case.longest} tokens (fill {fill:.2f}), "
        f"{case.heads} heads of {case.head_dim} over {case.kv_heads}, {'causal, ' if case.causal else ''}{case.dtype}; "
        "operations on real tokens",
        contestants,
        truth=functools.partial(_truth, case, inputs),
        judge="SDPA math",
        device=inputs.q.device,
        dtype=case.dtype,
        amount=4 * case.head_dim * case.heads * pairs / 1e9,
        unit="GFLOP/s",
        bars=dict(case.bars),
        settings=settings,
    )


def _gpu(name: str, longest: int, head_dim: int, **options: Any) -> Case:
    """16 Ki tokens in bf16, 2048 features: the shape that attention papers report; `options` are fields of `Case`."""
    heads = 2048 // head_dim
    shape: dict[str, Any] = {"rows": max(16384 // longest, 1), "heads": heads, "kv_heads": heads}
    return Case(name, "cuda", torch.bfloat16, longest=longest, head_dim=head_dim, **shape | options)


_cpu = functools.partial(Case, device="cpu", dtype=torch.float32, longest=256)
CASES = (
    _gpu("1k d64", 1024, 64, bars=(("SDPA flash", 1.1), ("SDPA cuDNN", 1.0))),
    _gpu("1k d64 causal", 1024, 64, causal=True, bars=(("SDPA flash", 1.1), ("SDPA cuDNN", 1.0))),
    _gpu("4k d64", 4096, 64, bars=(("SDPA flash", 1.3),)),
    _gpu("4k d64 causal", 4096, 64, causal=True, bars=(("SDPA flash", 1.3),)),
    _gpu("log-normal d64", 1024, 64, rows=64, median=256, bars=(("varlen_attn", 1.6), ("SDPA efficient", 3.0))),
    _gpu("1k d64 T5 bias", 1024, 64, bias=True, bars=(("SDPA efficient", 1.9),)),
    _gpu("1k d32", 1024, 32),
    _gpu("8k d128", 8192, 128, bars=(("SDPA flash", 1.25),)),
    _gpu("8k d128 causal grouped", 8192, 128, causal=True, kv_heads=4),
    _cpu("MiniLM log-normal", rows=32, heads=12, kv_heads=12, head_dim=32, median=50),
    _cpu("MiniLM full", rows=8, heads=12, kv_heads=12, head_dim=32),
    _cpu("SmolLM2 prefill log-normal", rows=16, heads=9, kv_heads=3, head_dim=64, median=50, causal=True),
    _cpu("T5 bias log-normal", rows=32, heads=8, kv_heads=8, head_dim=64, median=50, bias=True),
)
ROWS = tuple(
    Row(
        f"kernels/{'gpu' if case.device == 'cuda' else 'cpu'}/attention {case.name}",
        functools.partial(_measure, case),
        needs_gpu=case.device == "cuda",
    )
    for case in CASES
)
