"""`Embeds` whose sequences are under way: they come and are answered as one, and are run one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.frames import MAX_FRAME
from tercet.server.wire import Cancel, Embedding, Embeddings, Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tercet.server.wire import Embed, Embeds, Output

MOST_BYTES = MAX_FRAME // 2
"""Of the vectors of one batch, which are answered in one frame; those beyond are given up."""


class _Batch:
    """One of them. Its sequences have ids that count up from its own."""

    def __init__(self, id: int, rows: int) -> None:
        self._id = id
        self._vectors: dict[int, bytes] = {}  # by row
        self._bytes = 0  # of vectors
        self._rejected: dict[int, Rejected] = {}
        self.ids = range(id, id + rows)

    def missing(self) -> Iterator[int]:
        """The ids of sequences that are not answered."""
        return (id for row, id in enumerate(self.ids) if row not in self._vectors and row not in self._rejected)

    def take(self, output: Embedding | Rejected) -> Embeddings | None:
        """The answer to a sequence; once that was the last, the answer to the batch."""
        row = output.id - self._id
        if isinstance(output, Rejected):
            self._rejected[row] = output
        elif self._bytes + len(output.data) <= MOST_BYTES:
            self._vectors[row] = output.data
            self._bytes += len(output.data)
        else:
            problem = f"the vectors of the inputs take more than {MOST_BYTES} bytes together"
            self._rejected[row] = Rejected(id=output.id, reason="invalid", message=problem)
        if len(self._vectors) + len(self._rejected) < len(self.ids):
            return None
        data = b"".join([self._vectors[row] for row in sorted(self._vectors)])
        return Embeddings(id=self._id, data=data, rejected=self._rejected)


class Batches:
    """Those of one front end that are not answered."""

    def __init__(self) -> None:
        self._batches: dict[int, _Batch] = {}  # by the id of each sequence

    def open(self, embeds: Embeds) -> Iterable[Embed]:
        """The sequences of one. Raises ValueError where its columns do not fit each other."""
        rows = embeds.rows()
        batch = _Batch(embeds.id, len(rows))
        self._batches.update(dict.fromkeys(batch.ids, batch))
        return rows

    def close(self, cancel: Cancel) -> Iterable[Cancel]:
        """What is to be stopped: of a batch each sequence that is not answered."""
        batch = self._batches.get(cancel.id)
        if batch is None:
            return (cancel,)
        self._forget(batch)
        return (Cancel(id=id) for id in batch.missing())

    def answers(self, outputs: Iterable[Output]) -> Iterator[Output]:
        """The same answers, those to a batch once it is whole."""
        for output in outputs:
            batch = self._batches.get(output.id)
            if batch is None or not isinstance(output, Embedding | Rejected):
                yield output
            elif whole := batch.take(output):
                self._forget(batch)
                yield whole

    def _forget(self, batch: _Batch) -> None:
        for id in batch.ids:
            del self._batches[id]
