"""What the device knows of the rows that run: tables with a lane for each, which are told what is new and no more.

A row that decodes changes its lane on the device alone: its length grows, its last token is the one drawn. The host
tells what it decides: which row a lane is of, its pages, how it is sampled, whether it takes part.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

import torch

from tercet.server.engine.sampler import Filters, filters_of
from tercet.server.engine.transfer import words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from tercet.server.engine.sequence import Sequence as Row
    from tercet.server.engine.transfer import PackedBuffer

ALIGNED = 4  # elements: every table begins where Triton can load 16 bytes at once

ACTIVE, LENGTH, LAST_TOKEN, SAMPLE, HEAD, CROSS_LENGTH, TOP_K, TEMPERATURE, TOP_P, MIN_P = FIELDS = range(10)


class Draws(NamedTuple):
    """How rows draw, [N] each."""

    filters: Filters
    seed: Tensor
    """int64"""
    sample: Tensor
    """int32"""


class Lanes:
    """The tables, one int32 buffer on the device, and what of them is not told yet."""

    def __init__(self, count: int, pages: int, cross_pages: int, device: torch.device) -> None:
        """`pages` and `cross_pages`: the most of a row and of its source."""
        self.count = count
        self._stride = aligned(count)
        self._width, self._cross_width = aligned(pages), aligned(cross_pages)
        self._seeds_at = len(FIELDS) * self._stride
        self._pages_at = self._seeds_at + 2 * self._stride
        self._cross_at = self._pages_at + self._width * count
        self._flat = torch.zeros(self._cross_at + self._cross_width * count, dtype=torch.int32, device=device)
        self._scalars = self._flat[: self._seeds_at].view(len(FIELDS), self._stride)
        self._seeds = self._flat[self._seeds_at : self._pages_at].view(torch.int64)
        self.active = self._scalars[ACTIVE]
        """int32 [lanes]: 1 for the rows of the next decode step, else 0."""
        self.length = self._scalars[LENGTH]
        """int32 [lanes]: tokens whose keys and values are in pages."""
        self.last_token = self._scalars[LAST_TOKEN]
        """int32 [lanes]: the last one drawn, which comes after those."""
        self.sample = self._scalars[SAMPLE]
        """int32 [lanes]: which sample of its request a row is, or which beam of its search."""
        self.head = self._scalars[HEAD]
        """int32 [lanes]: the first lane of the search that a row is a beam of; -1 for others."""
        self.cross_length = self._scalars[CROSS_LENGTH]
        """int32 [lanes]: tokens of the source."""
        self.page_table = self._flat[self._pages_at : self._cross_at].view(count, self._width)
        """int32 [lanes, P]"""
        self.cross_page_table = self._flat[self._cross_at :].view(count, self._cross_width)
        """int32 [lanes, Pc]"""
        self._told: list[tuple[list[int], int] | None] = [None] * count  # the list of pages of a row, how many of them
        self._active: set[int] | None = set()  # None: what the device knows of it is not known here
        self._places, self._values = array("q"), array("i")  # what is not told yet

    def update(self, rows: Iterable[Row]) -> None:
        """Finds what is new of rows. That another row has a lane shows in its list of pages, which is another one."""
        for row in rows:
            lane, pages = row.lanes[0], row.pages
            told = self._told[lane]
            if told is None or told[0] is not pages:
                self._introduce(lane, row)
            elif told[1] == len(pages):
                continue
            else:
                self._tell(self._pages_at + lane * self._width + told[1], pages[told[1] :])
            self._told[lane] = pages, len(pages)

    def activate(self, lanes: set[int]) -> None:
        """Says which rows the next decode step has."""
        for lane in range(self.count) if self._active is None else self._active ^ lanes:
            self._tell(ACTIVE * self._stride + lane, (lane in lanes,))
        self._active = lanes

    def forget(self) -> None:
        """Tells everything anew, but for tokens that the device alone knows; it may have missed some."""
        self._places, self._values = array("q"), array("i")
        self._told, self._active = [None] * len(self._told), None

    def put(self, buffer: PackedBuffer) -> bool:
        """Puts what is new into a batch's buffer, no place twice: a GPU writes in no order. False if nothing is."""
        if not self._places:
            return False
        buffer.put("lane_places", self._places, "q")
        buffer.put("lane_values", self._values)
        self._places, self._values = array("q"), array("i")
        return True

    def take(self, views: dict[str, Tensor]) -> None:
        """Changes the tables on the device by what `put` put there."""
        if "lane_places" in views:
            self._flat[views["lane_places"]] = views["lane_values"]

    def draws(self, lanes: int) -> Draws:
        """Those of the first lanes, as they lie there."""
        return self._draws(self._scalars[:, :lanes], self._seeds[:lanes])

    def draws_of(self, lanes: Tensor, count: int) -> Draws:
        """Those of the first `count` of `lanes`, int32 [a multiple of `ALIGNED`], so that each is aligned."""
        return self._draws(self._scalars.index_select(1, lanes)[:, :count], self._seeds.index_select(0, lanes)[:count])

    @staticmethod
    def _draws(scalars: Tensor, seeds: Tensor) -> Draws:
        floats = scalars.view(torch.float32)
        return Draws(Filters(floats[TEMPERATURE], scalars[TOP_K], floats[TOP_P], floats[MIN_P]), seeds, scalars[SAMPLE])

    def _introduce(self, lane: int, row: Row) -> None:
        request = row.request
        temperature, top_k, top_p, min_p = filters_of(request.sampling)
        scalars = {
            LENGTH: row.computed,
            SAMPLE: row.sample,
            HEAD: row.head,
            CROSS_LENGTH: len(request.source),
            TOP_K: top_k,
            **dict(zip((TEMPERATURE, TOP_P, MIN_P), words("3f", temperature, top_p, min_p), strict=True)),
        }
        if not row.drawn:
            scalars[LAST_TOKEN] = row.tokens[-1]
        for field, value in scalars.items():
            self._tell(field * self._stride + lane, (value,))
        self._tell(self._seeds_at + 2 * lane, words("Q", request.sampling.seed))
        self._tell(self._pages_at + lane * self._width, row.pages)
        self._tell(self._cross_at + lane * self._cross_width, request.cross_pages)

    def _tell(self, first: int, values: Iterable[int]) -> None:
        known = len(self._values)
        self._values.extend(values)
        self._places.extend(range(first, first + len(self._values) - known))


def aligned(count: int) -> int:
    """`count` or the next number that keeps what follows aligned."""
    return -(-count // ALIGNED) * ALIGNED


def lane_bytes(pages: int, cross_pages: int) -> int:
    """Bytes of a lane in all tables."""
    return 4 * (len(FIELDS) + 2 + aligned(pages) + aligned(cross_pages))
