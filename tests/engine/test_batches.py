"""Batches of sequences to embed: one question and one answer, whatever becomes of their sequences."""

import pytest

from tercet.server.engine import batches as batches_module
from tercet.server.engine.batches import Batches
from tercet.server.wire import Cancel, Embedding, Embeddings, Embeds, Prediction, Rejected, token_ids


def embeds(id, *lengths, **columns):
    """Sequences of ids that count up."""
    every = {"lengths": token_ids(lengths), "token_ids": token_ids(range(sum(lengths))), **columns}
    return Embeds(id=id, pooling="cls", normalize=True, **every)


def vector(id):
    return Embedding(id=id, data=b"%d" % id)


def rejected(id):
    return Rejected(id=id, reason="deadline", message="late")


def test_columns_are_sequences_with_ids_of_their_own():
    types = token_ids([0, 1, 1])
    first, second = Batches().open(embeds(7, 2, 1, type_ids=types, dimensions=3, deadline=1.5))
    assert (first.id, first.token_ids, first.type_ids) == (7, token_ids([0, 1]), types[:2])
    assert (second.id, second.token_ids, second.type_ids) == (8, token_ids([2]), types[2:])
    assert (second.pooling, second.normalize, second.dimensions, second.deadline) == ("cls", True, 3, 1.5)


@pytest.mark.parametrize(
    "columns",
    [{"token_ids": [1]}, {"type_ids": [0]}, {"lengths": [4, -1]}, {"lengths": [], "token_ids": []}],
    ids=["ids", "types", "negative", "none"],
)
def test_columns_that_do_not_fit_are_refused(columns):
    with pytest.raises(ValueError, match="token ids are not of sequences"):
        Batches().open(embeds(0, 2, 1, **{name: token_ids(values) for name, values in columns.items()}))


def test_answers_come_with_the_last_in_the_order_of_the_sequences():
    batches = Batches()
    batches.open(embeds(3, 1, 1, 1, 1))
    other = Prediction(id=1, data=b"")
    assert list(batches.answers([vector(5), other, rejected(4)])) == [other]
    assert list(batches.answers([vector(6)])) == []
    whole = Embeddings(id=3, data=b"356", rejected={1: rejected(4)})
    assert list(batches.answers([vector(3), vector(9)])) == [whole, vector(9)]


def test_vectors_that_no_frame_would_hold_are_given_up(monkeypatch):
    monkeypatch.setattr(batches_module, "MOST_BYTES", 2)
    batches = Batches()
    batches.open(embeds(3, 1, 1, 1))
    [whole] = batches.answers([vector(4), vector(3), vector(5)])
    assert (whole.data, list(whole.rejected), whole.rejected[2].reason) == (b"34", [2], "invalid")
    assert "more than 2 bytes" in whole.rejected[2].message


def test_one_that_is_given_up_is_stopped_where_it_is_not_answered():
    batches = Batches()
    batches.open(embeds(3, 1, 1, 1))
    batches.open(embeds(6, 1))
    list(batches.answers([vector(4)]))
    assert list(batches.close(Cancel(id=3))) == [Cancel(id=3), Cancel(id=5)]
    assert list(batches.answers([vector(5), vector(6)])) == [vector(5), Embeddings(id=6, data=b"6", rejected={})]
    assert list(batches.close(Cancel(id=3, sample=1))) == [Cancel(id=3, sample=1)]  # it is no batch any more
