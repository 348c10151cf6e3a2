"""The rows of a batch: what of them kernels are not specialized for, and which row covers a token of flat storage."""

from __future__ import annotations

import triton
import triton.language as tl

# Arguments that change from batch to batch. Triton would compile a kernel anew for each that becomes 1 or a multiple of
# 16, in the middle of a request.
PER_BATCH = (
    "TOKENS", "ROWS", "PAGES", "KEYS", "CAPACITY", "PROGRAMS", "QUERY_TILES", "longest", "value", "left", "right",
    "start_ptr", "length_ptr", "q_start_ptr", "q_length_ptr", "kv_start_ptr", "kv_length_ptr", "page_table_ptr",
    "key_rows_ptr", "slots_ptr", "positions_ptr", "token_ids_ptr", "type_ids_ptr",
)  # fmt: skip


@triton.jit
def find_rows(token, start_ptr, length_ptr, ROWS, BLOCK_T: tl.constexpr, BLOCK_B: tl.constexpr):
    """For tokens [BLOCK_T]: the row that covers each and its place in that row, both -1 where none does."""
    row = tl.full([BLOCK_T], -1, tl.int32)
    place = tl.full([BLOCK_T], -1, tl.int32)
    for first in range(0, ROWS, BLOCK_B):
        b = first + tl.arange(0, BLOCK_B)
        start = tl.load(start_ptr + b, mask=b < ROWS, other=0).to(tl.int32)
        length = tl.load(length_ptr + b, mask=b < ROWS, other=0).to(tl.int32)
        offset = token[:, None] - start[None, :]  # [BLOCK_T, BLOCK_B]
        covers = (offset >= 0) & (offset < length[None, :])
        row = tl.maximum(row, tl.max(tl.where(covers, b[None, :], -1), axis=1))
        place = tl.maximum(place, tl.max(tl.where(covers, offset, -1), axis=1))
    return row, place
