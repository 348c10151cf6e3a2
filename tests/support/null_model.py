"""A model without weights for the tests of the engine: its next token is a hash of what it finds in the cache.

Every token a row attends to is read back through the row's page table, so that a page too few, a page freed too early
or one written by a stranger changes the output. `continuation` computes what must come out, without batches or pages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from tercet.server.models import KVCache

VOCAB_SIZE = 101
POISON = 66  # a token that makes every batch fail which contains it
_MODULUS = 1_000_003
_HEAVY_MESSAGE = "DefaultCPUAllocator: can't allocate memory"


def hashed(tokens, start=17):
    for token in tokens:
        start = (start * 31 + int(token) + 1) % _MODULUS
    return start


def scores(state):
    """float32 [VOCAB_SIZE]: the logits of a hash, all different; the poison is never chosen."""
    logits = [(state * (2 * token + 1) + 7 * token) % 997 / 100 + token * 1e-5 for token in range(VOCAB_SIZE)]
    logits[POISON] = -1e9
    return torch.tensor(logits)


def continuation(prompt, new_tokens, source=(), eos_ids=()):
    """The greedy tokens after `prompt`."""
    tokens = list(prompt)
    for _ in range(new_tokens):
        tokens.append(int(scores(hashed(tokens, hashed(source))).argmax()))
        if tokens[-1] in eos_ids:
            break
    return tokens[len(prompt) :]


HEAD = SimpleNamespace(task="generate", outputs=VOCAB_SIZE, reads="all", dense=None)


@dataclass
class NullModel:
    """As much of `tercet.server.models.Model` as the engine uses."""

    family: str = "decoder"
    max_length: int = 64
    head: SimpleNamespace | None = None
    """Of an encoder; the others generate."""
    heavy: int | None = None
    """Rows of a batch from which memory runs out."""
    batches: list = field(default_factory=list)
    """Every batch seen."""
    architecture: str = "null"
    vocab_size: int = VOCAB_SIZE
    target_vocab_size: int = VOCAB_SIZE
    embedding_size: int = 1
    parameters: int = 0
    weight_bytes: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    @property
    def spec(self):
        stack = SimpleNamespace(
            hidden_size=1,
            heads=1,
            head_dim=1,
            intermediate_size=1,
            gated=False,
            token_types=2 * (self.family == "encoder"),
        )
        head = self.head if self.family == "encoder" else HEAD
        return SimpleNamespace(encoder=stack, stacks={"encoder": stack}, head=head)

    def new_cache(self, pages, page_size):
        return KVCache(*torch.full((2, 1, pages, page_size, 1, 1), -1, dtype=torch.float64), page_size)

    def cache_bytes_per_page(self, page_size):
        return 16 * page_size

    def encode(self, batch):
        self._check(batch)
        types = batch.type_ids if batch.type_ids is not None else torch.zeros_like(batch.token_ids)
        return (batch.token_ids + 1000 * batch.positions + 0.5 * types).float()[:, None]

    def write_cross(self, encoded, slots, cache):
        _write(cache.k, slots, encoded[:, 0] % 1000)

    def decode(self, batch, cache):
        self._check(batch)
        _write(cache.k, batch.slots, batch.token_ids)
        hidden = torch.full((batch.rows.tokens, 1), torch.nan, dtype=torch.float64)
        for row in range(len(batch.rows.length)):
            start, length = int(batch.rows.start[row]), int(batch.rows.length[row])
            total = int(batch.kv_length[row])
            if total > batch.longest_kv or length > batch.rows.longest:
                raise AssertionError("a bound is too low")
            first = 17
            if batch.cross_page_table is not None:
                first = hashed(_read(cache.k, batch.cross_page_table, row, int(batch.cross_length[row])))
            holders = None if batch.key_rows is None else batch.key_rows[row, :total].long()
            tokens = _read(cache.k, batch.page_table, row, total, holders)
            for index in range(length):
                end = total - length + index + 1
                if int(batch.positions[start + index]) != end - 1:
                    raise AssertionError("a position is wrong")
                hidden[start + index] = hashed(tokens[:end], first)
        return hidden

    def read(self, batch, source=None):
        self._check(batch)
        hidden = torch.full((batch.rows.tokens, 1), torch.nan, dtype=torch.float64)
        for row, tokens in enumerate(_rows(batch.token_ids, batch.rows)):
            first = 17
            if source is not None:
                first = hashed(_rows(source.hidden[:, 0] % 1000, source.rows)[row])
            start = int(batch.rows.start[row])
            for index in range(len(tokens)):
                hidden[start + index] = hashed(tokens[: index + 1], first)
        return hidden

    projects = True

    def project(self, vectors):
        return torch.cat([vectors] * self.embedding_size, dim=1)

    def logits(self, hidden):
        return torch.stack([scores(int(state)) for state in hidden[:, 0]])

    def head_topk(self, hidden, k):
        values, ids = self.logits(hidden).sort(descending=True, stable=True)
        return values[:, :k], ids[:, :k].int()

    def topk_refusals(self, rows, k):
        return []

    def _check(self, batch):
        self.batches.append(batch)
        if not ((batch.token_ids >= 0) & (batch.token_ids < VOCAB_SIZE)).all():
            raise AssertionError("a token is beyond the vocabulary")
        if (batch.token_ids == POISON).any():
            raise RuntimeError("a poisonous token")
        if self.heavy is not None and len(batch.rows.length) >= self.heavy:
            raise RuntimeError(_HEAVY_MESSAGE)


def _rows(values, rows):
    places = zip(rows.start.tolist(), rows.length.tolist(), strict=True)
    return [values[start : start + length].tolist() for start, length in places]


def _write(pages, slots, values):
    kept = slots >= 0
    pages.view(-1)[slots[kept].long()] = values[kept].to(pages.dtype)


def _read(pages, table, row, length, holders=None):
    places = torch.arange(length)
    page_size = pages.shape[2]
    page = table[row if holders is None else holders, places // page_size].long()
    found = pages[0, page, places % page_size, 0, 0]
    if (found < 0).any():
        raise AssertionError("a page was read that nobody wrote")
    return found.tolist()
