"""What a decode step needs beside the model, in one launch before it and one after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tercet.kernels.decode_ops import DecodeInputs

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 128  # rows of a program that draw
KEYS = 1024  # of which the holders are written at once


@triton.jit(do_not_specialize=["PAGES", "longest"])
def decode_inputs_kernel(
    length_ptr,  # [B]
    active_ptr,  # [B]
    page_table_ptr,  # [B, PAGES]
    cross_length_ptr,  # [B] or None
    head_ptr,  # [B] or None
    holders_ptr,  # [B, longest] or None
    positions_ptr,  # [B]
    kv_length_ptr,  # [B]
    slots_ptr,  # [B]
    cross_out_ptr,  # [B] or None
    PAGES, longest,
    PAGE_SIZE: tl.constexpr, CROSS: tl.constexpr, BEAMS: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Grid (B,)."""
    row = tl.program_id(0)
    active = tl.load(active_ptr + row)
    position = tl.load(length_ptr + row) * active
    kv_length = position + active
    page = tl.load(page_table_ptr + row.to(tl.int64) * PAGES + position // PAGE_SIZE)
    tl.store(positions_ptr + row, position)
    tl.store(kv_length_ptr + row, kv_length)
    tl.store(slots_ptr + row, tl.where(active > 0, page * PAGE_SIZE + position % PAGE_SIZE, -1))
    if CROSS:
        tl.store(cross_out_ptr + row, tl.load(cross_length_ptr + row) * active)
    if BEAMS:
        own = tl.where(tl.load(head_ptr + row) < 0, kv_length, 0)
        for first in range(0, own, BLOCK_L):
            key = first + tl.arange(0, BLOCK_L)
            holder = tl.zeros([BLOCK_L], tl.int32) + row
            tl.store(holders_ptr + row.to(tl.int64) * longest + key, holder, mask=key < own)
    if active > 0:
        tl.store(length_ptr + row, kv_length)


def decode_inputs(
    length: Tensor, active: Tensor, page_table: Tensor, *, page_size: int, cross_length: Tensor | None,
    head: Tensor | None, holders: Tensor | None,
) -> DecodeInputs:  # fmt: skip
    rows = len(length)
    positions, kv_length, slots = (torch.empty_like(length) for _ in range(3))
    crossed = None if cross_length is None else torch.empty_like(length)
    if rows:
        decode_inputs_kernel[rows,](
            length, active, page_table, cross_length, head, holders, positions, kv_length, slots, crossed,
            page_table.shape[1], 0 if holders is None else holders.shape[1],
            PAGE_SIZE=page_size, CROSS=crossed is not None, BEAMS=holders is not None, BLOCK_L=KEYS, num_warps=1,
        )  # fmt: skip
    return DecodeInputs(positions, kv_length, slots, crossed)


@triton.jit(do_not_specialize=["N"])
def next_tokens_kernel(
    choice_ptr,  # float32 [N, K] or int64 [N]
    ids_ptr,  # [N, K] or None
    last_token_ptr,  # [lanes] or None
    lanes_ptr,  # [N] or None
    active_ptr,  # [N] or None
    tokens_ptr,  # int64 [N]
    N, K, VOCABULARY,
    LOGITS: tl.constexpr, PLACES: tl.constexpr, TELL: tl.constexpr, LANES: tl.constexpr, ACTIVE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of rows,)."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    known = row < N
    if LOGITS:
        first = tl.load(choice_ptr + row * K, mask=known, other=0.0)
        chosen = tl.abs(first) < float("inf")
        token = tl.load(ids_ptr + row * K, mask=known & chosen, other=VOCABULARY)
    else:
        token = tl.load(choice_ptr + row, mask=known, other=0).to(tl.int32)
        if PLACES:
            token = tl.load(ids_ptr + row * K + token, mask=known & (token < K), other=VOCABULARY)
    tl.store(tokens_ptr + row, token.to(tl.int64), mask=known)
    if TELL:
        lane = row
        if LANES:
            lane = tl.load(lanes_ptr + row, mask=known, other=0)
        if ACTIVE:
            known &= tl.load(active_ptr + row, mask=known, other=0) > 0
        tl.store(last_token_ptr + lane, tl.minimum(token, VOCABULARY - 1), mask=known)


def next_tokens(
    choice: Tensor, ids: Tensor | None, *, vocabulary: int, last_token: Tensor | None, lanes: Tensor | None,
    active: Tensor | None,
) -> Tensor:  # fmt: skip
    rows, logits = len(choice), choice.is_floating_point()
    tokens = torch.empty(rows, dtype=torch.int64, device=choice.device)
    if rows:
        next_tokens_kernel[triton.cdiv(rows, BLOCK),](
            choice, ids, last_token, lanes, active, tokens, rows, 1 if ids is None else ids.shape[1], vocabulary,
            LOGITS=logits, PLACES=ids is not None and not logits, TELL=last_token is not None, LANES=lanes is not None,
            ACTIVE=active is not None, BLOCK_N=BLOCK,
        )  # fmt: skip
    return tokens
