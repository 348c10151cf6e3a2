"""What pages hold, found again: the beginnings of texts, and whole sources.

A full page of a text is known by a hash of its tokens and of the hash of the page before it, so that equal hashes mean
equal tokens from the first on; where the chain begins are the tenant's salt and, of a seq2seq model, the source. The
hash is SHA-256, by which nobody can make two texts alike. The pages of a source are known by the hash of all of it.

Pages are known once what they hold is really computed. Until then other texts that begin alike can wait for it.
"""

from __future__ import annotations

from array import array
from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING

from tercet.server.engine.pages import pages_of
from tercet.server.wire import CacheCounts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tercet.server.engine.pages import PagePool
    from tercet.server.engine.sequence import Request, Sequence
    from tercet.server.wire import TokenIds


class PageCache:
    """Knows what the pages of a pool hold."""

    def __init__(self, pool: PagePool, page_size: int, *, shared: bool) -> None:
        """Without `shared` a request finds what itself computed: its samples', or its own after a preemption."""
        self._pool = pool
        self._page_size = page_size
        self._shared = shared
        self._coming: dict[bytes, Sequence] = {}  # what is being computed, and by which running sequence
        self._counts: Counter[str] = Counter()  # those of `CacheCounts` by name

    @property
    def counts(self) -> CacheCounts:
        """What was looked for and found since the start."""
        return CacheCounts(**self._counts, evictions=self._pool.evictions)

    def beginning(self, sequence: Sequence) -> list[int]:
        """The pages of a sequence's first tokens that are there already.

        The last token is never in them: it is read again, to choose the next one from.
        """
        return self._pool.find(self._readable(sequence))

    def source(self, request: Request) -> list[int]:
        """The cross-attention pages of a request's source, all of them or none."""
        keys = self._source_keys(request)
        found = self._pool.find(keys)
        return found if len(found) == len(keys) else []

    def is_coming(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence had better wait: a running one computes its source, or half of its tokens or more,
        and it will find them.
        """
        if sequence.expected in self._coming:
            return True
        request = sequence.request
        if request.must_encode and self._source_keys(request)[0] in self._coming:
            sequence.expected = self._source_keys(request)[0]
            return True
        keys = self._readable(sequence)
        there = last = len(self._pool.find(keys))
        while last < len(keys) and keys[last] in self._coming:
            last += 1
        unread = len(sequence.tokens) - there * self._page_size
        if last == there or 2 * (last - there) * self._page_size < unread:
            return False
        sequence.expected = keys[last - 1]
        return True

    def start(self, sequence: Sequence) -> bool:
        """A sequence computes what follows the pages that were found, and the source if that was not. Tells whether its
        request, starting for the first time, has found anything.
        """
        request = sequence.request
        sequence.kept = sequence.computed // self._page_size
        for key in self._keys(sequence)[sequence.kept :]:
            self._coming.setdefault(key, sequence)
        if request.must_encode:
            self._coming.setdefault(self._source_keys(request)[0], sequence)
        if request.cached is not None:
            return False
        if request.source:
            kind, asked, request.cached = "source", len(request.source), len(request.source) * request.encoded
        else:
            kind, asked, request.cached = "prefix", len(request.prompt), sequence.computed
        if self._shared:
            self._counts[f"{kind}_queries"] += asked
            self._counts[f"{kind}_hits"] += request.cached
        return request.cached > 0

    def keep(self, ends: Iterable[tuple[Sequence, int]]) -> None:
        """A pass has computed the keys and values of each sequence's tokens up to an end, and these tokens are known:
        full pages of those that still run will be found.
        """
        for sequence, end in ends:
            full = end // self._page_size
            if full > sequence.kept and sequence.state == "running":
                keys = self._keys(sequence)[:full]
                for page in range(sequence.kept, len(keys)):
                    self._pool.keep(sequence.pages[page], keys[page])
                self._withdraw(sequence, keys[sequence.kept :])
                sequence.kept = len(keys)

    def keep_sources(self, sequences: Iterable[Sequence]) -> None:
        """A pass has encoded the sources of sequences: those of generations that still run will be found."""
        for sequence in sequences:
            request = sequence.request
            if sequence.state == "running" and request.reading is None:
                keys = self._source_keys(request)
                for page, key in zip(request.cross_pages, keys, strict=True):
                    self._pool.keep(page, key)
                self._withdraw(sequence, keys[:1])

    def stop(self, sequence: Sequence) -> None:
        """What a sequence would have computed does not come."""
        self._withdraw(sequence, sequence.keys[sequence.kept :])
        self._withdraw(sequence, sequence.request.source_keys[:1])

    def forget(self, request: Request) -> None:
        """What a request holds is no good: none of it will be found."""
        self._pool.forget(request.cross_pages)
        for sequence in request.sequences:
            self._pool.forget(sequence.pages)

    def _withdraw(self, sequence: Sequence, keys: Iterable[bytes]) -> None:
        for key in keys:
            if self._coming.get(key) is sequence:
                del self._coming[key]

    def _readable(self, sequence: Sequence) -> list[bytes]:
        """The keys of the full pages before a sequence's last token."""
        return self._keys(sequence)[: (len(sequence.tokens) - 1) // self._page_size]

    def _keys(self, sequence: Sequence) -> list[bytes]:
        """The keys of the full pages that all rows of a sequence have in common; owned by the sequence."""
        request = sequence.request
        if not sequence.keys:
            self._extend(request.prompt_keys, request, request.prompt, len(request.prompt))
            sequence.keys = request.prompt_keys.copy()
        self._extend(sequence.keys, request, sequence.tokens, sequence.common)
        return sequence.keys

    def _extend(self, keys: list[bytes], request: Request, tokens: list[int] | TokenIds, end: int) -> None:
        """Adds the keys of the full pages of `tokens` up to `end` that are not among `keys` yet."""
        begin, end = len(keys) * self._page_size, end // self._page_size * self._page_size
        ids = array("i", tokens[begin:end])
        data, size = ids.tobytes(), ids.itemsize * self._page_size
        key = keys[-1] if keys else self._root(request)
        for page in range(0, len(data), size):
            key = sha256(key + data[page : page + size]).digest()
            keys.append(key)

    def _source_keys(self, request: Request) -> list[bytes]:
        if not request.source_keys:
            pages = range(pages_of(len(request.source), self._page_size))
            request.source_keys = [self._root(request) + page.to_bytes(4) for page in pages]
        return request.source_keys

    def _root(self, request: Request) -> bytes:
        """Where the chains of a request begin: whose they are, and of which source."""
        if not request.root:
            salt = (request.salt if self._shared else str(request.arrival)).encode(errors="surrogatepass")
            request.root = sha256(len(salt).to_bytes(4) + salt + request.source.tobytes()).digest()
        return request.root
