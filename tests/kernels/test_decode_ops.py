"""What is around a decode step: inputs by what lanes say, and the tokens that the next step reads."""

import pytest
import torch

from tercet.kernels import decode_inputs, next_tokens


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def random_lanes(rows, pages, page_size):
    """Lanes of which some take part, some are beams and some have room for one token more."""
    length = torch.randint(0, pages * page_size, (rows,), dtype=torch.int32)
    length[0] = pages * page_size - 1
    active = (torch.rand(rows) < 0.7).int()
    active[0] = 1
    table = torch.randperm(rows * pages).view(rows, pages).int()
    head = torch.where(torch.rand(rows) < 0.5, -1, torch.randint(0, rows, (rows,))).int()
    holders = torch.randint(0, rows, (rows, pages * page_size), dtype=torch.int32)
    return length, active, table, head, holders


@pytest.mark.parametrize(("rows", "pages", "page_size"), [(1, 1, 1), (7, 5, 3), (33, 70, 16)])
@pytest.mark.parametrize("options", [(), ("cross",), ("beams",), ("cross", "beams")], ids="-".join)
def test_inputs(implementation, reference, rows, pages, page_size, options):
    length, active, table, head, holders = random_lanes(rows, pages, page_size)
    source = torch.randint(1, 50, (rows,), dtype=torch.int32)

    def inputs_of(op, length, holders):
        return op(
            length, active, table, page_size=page_size, cross_length=source if "cross" in options else None,
            head=head if "beams" in options else None, holders=holders if "beams" in options else None,
        )  # fmt: skip

    wanted_length, wanted_holders = length.clone(), holders.clone()
    wanted = inputs_of(reference.decode_inputs, wanted_length, wanted_holders)
    found = inputs_of(decode_inputs, length, holders)
    for tensor, other in zip(found, wanted, strict=True):
        assert (tensor is None) == (other is None)
        if tensor is not None:
            assert tensor.dtype == torch.int32
            assert torch.equal(tensor, other)
    assert torch.equal(length, wanted_length)
    assert torch.equal(holders, wanted_holders)


def test_inputs_of_lanes_that_take_part_and_not(implementation):
    """Lane 0 begins a page, lane 1 waits, lane 2 is a beam; the first two are none."""
    length, holders = ints(4, 9, 6), torch.full((3, 12), 7, dtype=torch.int32)
    inputs = decode_inputs(
        length, ints(1, 0, 1), ints([5, 8, 0], [1, 2, 3], [4, 6, 0]), page_size=4, cross_length=ints(11, 12, 13),
        head=ints(-1, -1, 2), holders=holders,
    )  # fmt: skip
    assert [tensor.tolist() for tensor in inputs] == [[4, 0, 6], [5, 0, 7], [32, -1, 26], [11, 0, 13]]
    assert length.tolist() == [5, 9, 7]
    assert holders.tolist() == [[0] * 5 + [7] * 7, [7] * 12, [7] * 12]


def test_head_and_holders_come_together():
    with pytest.raises(ValueError, match="head and holders"):
        decode_inputs(ints(1), ints(1), ints([0]), page_size=4, head=ints(0))


def told(rows, form):
    """Where the tokens of rows go: a table, and which places of it."""
    table = torch.full((rows + 5,), 77, dtype=torch.int32)
    lanes = torch.randperm(rows + 5)[:rows].int() if form == "lanes" else None
    active = (torch.rand(rows) < 0.6).int() if form == "active" else None
    return table, lanes, active


@pytest.mark.parametrize("form", ["lanes", "active", "all"])
@pytest.mark.parametrize("rows", [1, 3, 131])
@pytest.mark.parametrize("kind", ["greedy", "of few", "tokens"])
def test_next_tokens(implementation, reference, rows, kind, form):
    vocabulary, k = 50, 6
    ids = torch.randint(0, vocabulary, (rows, k), dtype=torch.int32)
    if kind == "greedy":
        choice = torch.randn(rows, k)
        choice[::2, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf])[torch.arange(rows)[::2] % 3]
    else:
        choice = torch.randint(0, (k if kind == "of few" else vocabulary) + 1, (rows,))
        ids = ids if kind == "of few" else None
    table, lanes, active = told(rows, form)
    wanted_table = table.clone()
    given = {"vocabulary": vocabulary, "lanes": lanes, "active": active}
    wanted = reference.next_tokens(choice, ids, last_token=wanted_table, **given)
    found = next_tokens(choice, ids, last_token=table, **given)
    assert found.dtype == torch.int64
    assert torch.equal(found, wanted)
    assert torch.equal(table, wanted_table)
    assert torch.equal(next_tokens(choice, ids, vocabulary=vocabulary), wanted)


def test_a_row_without_a_token_tells_one(implementation):
    table = ints(9, 9, 9)
    tokens = next_tokens(torch.tensor([40, 3, 40]), vocabulary=40, last_token=table, active=ints(1, 1, 0))
    assert tokens.tolist() == [40, 3, 40]
    assert table.tolist() == [39, 3, 9]


def test_logits_need_ids():
    with pytest.raises(ValueError, match="ids of logits"):
        next_tokens(torch.zeros(2, 1), vocabulary=5)
