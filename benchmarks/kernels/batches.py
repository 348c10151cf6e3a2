"""The batches that attention is measured on: the same keys packed, padded and in pages."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.rows import Device

BIAS_DISTANCE = 128
PAGE_SIZE = 16


@dataclass(frozen=True)
class Case:
    """A batch of `rows` sequences of up to `longest` keys."""

    name: str
    device: Device
    dtype: torch.dtype
    rows: int
    longest: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool = False
    median: int | None = None
    """Lengths are log-normal with this median (σ 0.8, at most `longest`); None: all are `longest`."""
    queries: int | None = None
    """Queries of each row, its last ones where causal; None: one for each key."""
    bias: bool = False
    """A relative-position bias, as in T5."""
    paged: bool = False
    """Keys lie in pages, as for a chunk of a prompt."""
    bars: tuple[tuple[str, float], ...] = ()
    goal: float | None = None
    """TFLOP/s, on an H100."""
    priority: int = 1

    def lengths(self) -> list[int]:
        """Keys of each row, seeded."""
        if self.median is None:
            return [self.longest] * self.rows
        chance = random.Random(0)
        return [
            min(max(round(self.median * math.exp(chance.gauss(0, 0.8))), 4), self.longest) for _ in range(self.rows)
        ]

    def small(self) -> Case:
        """The same in small, on a CPU."""
        kv_heads = 2 if self.kv_heads == self.heads else 1
        return replace(
            self, device="cpu", rows=3, longest=20, heads=2, kv_heads=kv_heads, head_dim=16,
            median=self.median and 8, queries=self.queries and 5,
        )  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """The tensors of a case."""

    q: Tensor  # [T, H, D]
    k: Tensor  # [T_k, H_kv, D]
    v: Tensor
    q_start: Tensor  # [B]
    q_length: Tensor  # [B]
    kv_start: Tensor  # [B]
    kv_length: Tensor  # [B]
    bias: Tensor | None  # [H, 2 * BIAS_DISTANCE + 1]
    padded: tuple[Tensor, Tensor, Tensor]  # [B, heads, S, D]
    mask: Tensor | None
    """Broadcasts to [B, H, S_q, S_k]: bool, or the bias with -inf in padding; None where no tensor is needed."""
    paged: tuple[Tensor, Tensor, Tensor] | None  # pages [n, PAGE_SIZE, H_kv, D] of k and of v, table [B, P]
    longest_q: int


def make_batch(case: Case) -> Batch:
    """Random tensors of a seed."""
    generator = torch.Generator().manual_seed(0)
    kv_length = torch.tensor(case.lengths(), dtype=torch.int32)
    q_length = kv_length if case.queries is None else kv_length.clamp(max=case.queries)
    q = torch.randn(int(q_length.sum()), case.heads, case.head_dim, generator=generator)
    k, v = (torch.randn(int(kv_length.sum()), case.kv_heads, case.head_dim, generator=generator) for _ in range(2))
    bias = torch.randn(case.heads, 2 * BIAS_DISTANCE + 1, generator=generator) if case.bias else None
    q, k, v = (x.to(case.device, case.dtype) for x in (q, k, v))
    q_length, kv_length = q_length.to(case.device), kv_length.to(case.device)
    bias = None if bias is None else bias.to(case.device)
    longest_q = case.queries or case.longest
    padded = _padded(q, q_length, longest_q), _padded(k, kv_length, case.longest), _padded(v, kv_length, case.longest)
    return Batch(
        q, k, v, starts(q_length), q_length, starts(kv_length), kv_length, bias, padded,
        _mask(case, q_length, kv_length, longest_q, bias), _paged(case, k, v, kv_length) if case.paged else None,
        longest_q,
    )  # fmt: skip


def starts(length: Tensor) -> Tensor:
    """Where each row of a packed batch begins."""
    return length.cumsum(0, dtype=torch.int32) - length


def real(length: Tensor, longest: int) -> Tensor:
    """Which places of a padded batch hold tokens: [B, longest]."""
    return torch.arange(longest, device=length.device) < length[:, None]


def _padded(packed: Tensor, length: Tensor, longest: int) -> Tensor:
    spread = packed.new_zeros(len(length), longest, *packed.shape[1:])
    spread[real(length, longest)] = packed
    return spread.transpose(1, 2).contiguous()


def _mask(case: Case, q_length: Tensor, kv_length: Tensor, longest_q: int, bias: Tensor | None) -> Tensor | None:
    if case.median is None and bias is None:
        return None
    visible = real(kv_length, case.longest)[:, None, None, :]  # [B, 1, 1, S_k]
    place = torch.arange(longest_q, device=case.device) + (kv_length - q_length)[:, None]  # [B, S_q], of the queries
    distance = (torch.arange(case.longest, device=case.device) - place[..., None])[:, None]  # [B, 1, S_q, S_k]
    visible = visible & (distance <= 0) if case.causal else visible
    if bias is None:
        return visible
    scores = bias[:, distance[0, 0].clamp(-BIAS_DISTANCE, BIAS_DISTANCE) + BIAS_DISTANCE].to(case.dtype)
    return torch.where(visible, scores, -math.inf)  # every row's queries begin alike: cases with a bias have all


def _paged(case: Case, k: Tensor, v: Tensor, kv_length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The keys in pages that lie in any order."""
    pages = -(-case.longest // PAGE_SIZE)  # of a row
    table = torch.randperm(case.rows * pages, generator=torch.Generator().manual_seed(1)).view(case.rows, pages)
    table = table.to(case.device, torch.int32)
    row, place = real(kv_length, case.longest).nonzero(as_tuple=True)
    slot = table[row, place // PAGE_SIZE].long() * PAGE_SIZE + place % PAGE_SIZE

    def spread(packed: Tensor) -> Tensor:
        storage = packed.new_zeros(case.rows * pages * PAGE_SIZE, *packed.shape[1:])
        storage[slot] = packed
        return storage.view(-1, PAGE_SIZE, *packed.shape[1:])

    return spread(k), spread(v), table
