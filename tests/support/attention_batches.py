"""Batches for attention, with NaN wherever nothing may be read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

NAN = float("nan")
LENGTHS = (17, 0, 1, 63, 111)


@dataclass
class Batch:
    """One attention call: flat or paged, packed or padded, with NaN wherever nothing may be read."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    options: dict


def ints(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def starts(lengths, *, padded: bool, spare: int = 0) -> tuple[torch.Tensor, int]:
    """Starts of the rows and the tokens of storage."""
    longest = max(lengths)
    if padded:
        return ints([row * longest for row in range(len(lengths))]), len(lengths) * longest + spare
    total = ints([0, *lengths]).cumsum(0)
    return total[:-1].int(), int(total[-1]) + spare


def storage(lengths, *, heads: int, head_dim: int, dtype: torch.dtype, padded: bool, spare: int = 0):
    start, tokens = starts(lengths, padded=padded, spare=spare)
    x = torch.full((tokens, heads, head_dim), NAN, dtype=dtype)
    for first, length in zip(start.tolist(), lengths, strict=True):
        x[first : first + length] = torch.randn(length, heads, head_dim)
    return x, start


def make_batch(
    q_lengths=LENGTHS,
    kv_lengths=None,
    *,
    heads=4,
    kv_heads=2,
    head_dim=32,
    dtype=torch.float32,
    paged=False,
    padded=False,
    page_size=8,
    shared=False,
    spare=0,
    reach=None,
    **options,
) -> Batch:
    kv_lengths = q_lengths if kv_lengths is None else kv_lengths
    shape = {"head_dim": head_dim, "dtype": dtype}
    q, q_start = storage(q_lengths, heads=heads, padded=padded, spare=spare, **shape)
    if paged:
        counts = [-(-length // page_size) for length in kv_lengths]
        free = torch.randperm(sum(counts) + 3).tolist()
        table = torch.full((len(kv_lengths), max(*counts, 1) + 1), -(10**6), dtype=torch.int32)
        k = torch.full((len(free), page_size, kv_heads, head_dim), NAN, dtype=dtype)
        v = k.clone()
        for row, (length, count) in enumerate(zip(kv_lengths, counts, strict=True)):
            pages = [free.pop() for _ in range(count)]
            table[row, :count] = ints(pages)
            for place in range(length):
                k[pages[place // page_size], place % page_size] = torch.randn(kv_heads, head_dim)
                v[pages[place // page_size], place % page_size] = torch.randn(kv_heads, head_dim)
        options["page_table"] = table
        if shared:
            options["key_rows"] = share(kv_lengths, table, k, v)
    else:
        k, options["kv_start"] = storage(kv_lengths, heads=kv_heads, padded=padded, **shape)
        v, _ = storage(kv_lengths, heads=kv_heads, padded=padded, **shape)
    if reach is not None:
        options["bias"] = torch.randn(heads, 2 * reach + 1)
    options |= {"q_start": q_start, "q_length": ints(q_lengths), "kv_length": ints(kv_lengths)}
    return Batch(q, k, v, options | {"longest_q": max(q_lengths), "longest_kv": max(kv_lengths)})


def share(lengths, table, k, v) -> torch.Tensor:
    """Key rows drawn at random from those that are long enough; what then no row reads becomes NaN."""
    page_size = k.shape[1]
    key_rows = torch.full((len(lengths), max(lengths) + 3), -(10**6), dtype=torch.int32)
    read = torch.zeros(k.shape[:2], dtype=torch.bool)
    for row, length in enumerate(lengths):
        for place in range(length):
            holders = [other for other, count in enumerate(lengths) if count > place]
            key_rows[row, place] = holder = holders[torch.randint(len(holders), ())]
            read[table[holder, place // page_size], place % page_size] = True
    k[~read] = v[~read] = NAN
    return key_rows
