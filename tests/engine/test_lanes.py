"""The tables on the device say what the sequences say, and are told no more than what is new."""

import pytest
import torch

from support.engine import generate
from tercet.server.engine.lanes import Lanes
from tercet.server.engine.sequence import generation_request
from tercet.server.engine.transfer import PackedBuffer

CPU = torch.device("cpu")


def sequence(lane, pages, **options):
    message = generate(0, [3, 4, 5], 9, decoder_ids=[7, 8], n=lane + 1, **options)
    row = generation_request(message, 0, "seq2seq", 64).sequences[lane]
    row.lanes, row.pages, row.computed = [lane], pages, 1
    row.request.cross_pages = [40 + lane]
    return row


def tell(lanes):
    """Moves what is new; how many values that are."""
    buffer = PackedBuffer()
    if not lanes.put(buffer):
        return 0
    views = buffer.upload(CPU)
    assert len(views["lane_places"].unique()) == len(views["lane_places"]), "a GPU would write either"
    lanes.take(views)
    return len(views["lane_values"])


@pytest.fixture
def lanes():
    return Lanes(3, 5, 1, CPU)


def test_a_row_is_told_whole_once(lanes):
    rows = [
        sequence(0, [9, 2], temperature=0.5, top_k=3, seed=2**64 - 2, top_p=0.25, min_p=0.125),
        sequence(2, [1, 5, 6]),
    ]
    lanes.update(rows)
    tell(lanes)
    assert lanes.page_table[[0, 2], :3].tolist() == [[9, 2, 0], [1, 5, 6]]
    assert lanes.cross_page_table[[0, 2], 0].tolist() == [40, 42]
    for table, values in ((lanes.length, [1, 1]), (lanes.last_token, [8, 8]), (lanes.cross_length, [3, 3])):
        assert table[[0, 2]].tolist() == values
    for draws in (lanes.draws(3), lanes.draws_of(torch.tensor([0, 1, 2, 0], dtype=torch.int32), 3)):
        assert [value[0].item() for value in draws.filters] == [0.5, 3, 0.25, 0.125]
        assert (draws.seed[0].item(), draws.sample.tolist()) == (-2, [0, 0, 2])
        assert not any(table.data_ptr() % 16 for table in (*draws.filters, draws.seed, draws.sample))
    lanes.update(rows)
    assert tell(lanes) == 0


def test_new_pages_are_told_alone(lanes):
    row = sequence(1, [9, 2])
    lanes.update([row])
    tell(lanes)
    row.pages += [3, 4]
    lanes.update([row])
    assert tell(lanes) == 2
    assert lanes.page_table[1, :4].tolist() == [9, 2, 3, 4]


def test_another_row_in_a_lane_and_a_failure(lanes):
    """Both tell everything; but not a token that the device alone knows."""
    for row in (first := sequence(1, [9, 2]), other := sequence(1, [4], seed=5)):
        lanes.update([row])
        tell(lanes)
    assert lanes.page_table[1, 0] == 4
    other.drawn, other.computed = 1, 2
    lanes.last_token[1] = 66
    lanes.activate({1})
    tell(lanes)
    lanes.page_table.zero_()
    lanes.active.fill_(7)
    lanes.forget()
    lanes.update([other])
    lanes.activate({1})
    tell(lanes)
    assert (lanes.page_table[1, 0], lanes.length[1], lanes.last_token[1]) == (4, 2, 66)
    assert lanes.active[: lanes.count].tolist() == [0, 1, 0]
    first.pages = [9, 2]
    lanes.update([first])
    tell(lanes)
    assert lanes.page_table[1, :2].tolist() == [9, 2]


def test_who_takes_part(lanes):
    for active, values in (({0, 2}, 2), ({0, 2}, 0), ({1, 2}, 2), (set(), 2)):
        lanes.activate(active)
        assert tell(lanes) == values
        assert set(lanes.active.nonzero().flatten().tolist()) == active
