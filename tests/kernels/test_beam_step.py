"""A step of beam search: what the kernel makes of tables, which are of searches of all kinds, is what torch makes."""

import random

import pytest
import torch

from tercet.kernels import BeamLanes, beam_step
from tercet.kernels.reference_beams import NEVER

LANES, WIDTH, MAX_ENDS = 41, 600, 20


def ints(values):
    return torch.tensor(values, dtype=torch.int32)


def settings_of(rng, beams, vocabulary, length):
    """Beams, candidates, ends, prompt, limit, early stopping, and a length penalty's bits."""
    ends = rng.choice([0, 1, 2, min(vocabulary - 1, 32 // max(2, beams) - 1)])
    prompt = length - rng.choice([0, 1, length // 2])
    limit = rng.choice([length + 1, length + 2, length + 40])
    penalty = torch.tensor(rng.choice([0.0, 1.0, 0.3, 2.0, -1.5, 5.0])).view(torch.int32)
    return [beams, max(2, 1 + ends) * beams, ends, prompt, limit, rng.randrange(3), int(penalty)]


def random_tables(rng, vocabulary, most):
    """Searches of up to `most` beams in lanes here and there, most of which take part; other lanes hold what is left
    of searches that ended, and rows that are none. The tables, the heads and whether each takes part."""
    free = rng.sample(range(LANES), LANES)
    head, sample = torch.randint(-1, LANES, (LANES,)).int(), torch.randint(0, most, (LANES,)).int()
    active, settings, searches = torch.zeros(LANES, dtype=torch.int32), torch.zeros(LANES, 7, dtype=torch.int32), []
    length = torch.randint(1, WIDTH - 1, (LANES,)).int()
    finished = torch.full((LANES,), NEVER)
    ended = torch.zeros(LANES, dtype=torch.int32)
    while len(free) > most:
        lanes = [free.pop() for _ in range(rng.randint(1, most))]
        takes_part = rng.random() < 0.8
        head[lanes], sample[lanes], active[lanes] = lanes[0], torch.arange(len(lanes)).int(), int(takes_part)
        length[lanes] = rng.choice([1, 7, 127, 128, 512, WIDTH - 1])
        settings[lanes[0]] = ints(settings_of(rng, len(lanes), vocabulary, int(length[lanes[0]])))
        there = rng.randint(0, len(lanes))
        finished[lanes[:there]], ended[lanes[:there]] = torch.randn(there).sort(descending=True).values - 5, 1
        searches.append((lanes, takes_part))
    for lane in free:
        head[lane], active[lane] = -1, 1
    ends = torch.randint(0, vocabulary, (LANES, MAX_ENDS)).int()
    holders, last_token = torch.randint(0, LANES, (LANES, WIDTH)).int(), torch.randint(0, 99, (LANES,)).int()
    scores = torch.randn(LANES).mul(2).round() / 2
    tables = BeamLanes(head, sample, length, last_token, scores, finished, ended, holders, ends, settings)
    return tables, active, searches


def random_likely(rows, vocabulary, *, equals):
    logits = torch.randn(rows, vocabulary) * 3
    values, ids = (logits.round() if equals else logits.log_softmax(-1)).topk(min(32, vocabulary))
    return values, ids.int()


def copied(tables):
    return BeamLanes(*(table.clone() for table in tables))


def assert_equal_tables(found, wanted, searches):
    for name, table, other in zip(BeamLanes._fields, found, wanted, strict=True):
        if name != "holders":
            assert torch.equal(table, other), name
    for lanes, _ in searches:  # behind its next key a beam holds nothing yet
        for lane in lanes:
            wanted.holders[lane, wanted.length[lane] + 1 :] = found.holders[lane, wanted.length[lane] + 1 :]
    assert torch.equal(found.holders, wanted.holders)


def told_of(told, index, beams, candidates, most):
    """What is told of a search, as far as it means anything."""
    floats, facts = (part[index] for part in told)
    count = (len(facts) - 1 - 4 * most) // 2
    candidates = min(candidates, count)
    groups = [facts[first : first + beams] for first in range(0, 4 * most, most)]
    groups += [facts[first : first + candidates] for first in (4 * most, 4 * most + count)]
    scores = torch.cat((floats[: 1 + beams], floats[1 + most : 1 + most + beams]))
    return scores.tolist(), [group.tolist() for group in groups], int(facts[-1])


@pytest.mark.parametrize("equals", [False, True], ids=["", "equals"])
@pytest.mark.parametrize(("most", "vocabulary"), [(2, 3), (8, 5), (3, 31), (8, 40), (5, 997)])
def test_searches_go_on_as_by_torch(implementation, reference, most, vocabulary, equals):
    """Of those that take part, or of all lanes, of which few are heads."""
    rng = random.Random(vocabulary)
    outcomes = set()
    for every in (False, True):
        tables, active, searches = random_tables(rng, vocabulary, most)
        row = torch.randperm(LANES).int()
        heads = list(range(LANES)) if every else [lanes[0] for lanes, takes_part in searches if takes_part]
        if not every:  # rows that are none know nothing of them
            active[tables.head < 0] = 0
        values, ids = random_likely(LANES, vocabulary, equals=equals)
        given = {
            "row": row, "heads": ints(heads), "active": active, "beams": most, "candidates": 32, "ends": 15,
            "longest": WIDTH,
        }  # fmt: skip
        expected = copied(tables)
        wanted = reference.beam_step(values, ids, lanes=expected, **given)
        told = beam_step(values, ids, lanes=tables, **given)
        assert [(part.shape, part.dtype) for part in told] == [(part.shape, part.dtype) for part in wanted]
        assert_equal_tables(tables, expected, searches)
        for index, head in enumerate(heads):
            if [head] in [lanes[:1] for lanes, takes_part in searches if takes_part]:
                beams, candidates = tables.settings[head, :2].tolist()
                found = told_of(told, index, beams, candidates, most)
                assert found == told_of(wanted, index, beams, candidates, most)
                outcomes.add(found[-1])
    assert outcomes == {0, 1}


def one_search(beams, scores, *, length=2, early=0, penalty=1.0, ends=()):
    """Tables of one search in the first lanes, whose prompt has a token, and which of them take part."""
    bits = int(torch.tensor(penalty).view(torch.int32))
    settings = ints([[beams, max(2, 1 + len(ends)) * beams, len(ends), 1, 30, early, bits]] * beams)
    every = torch.arange(beams).int()
    tables = BeamLanes(
        every * 0, every, torch.full_like(every, length), every * 0, torch.tensor(scores), torch.full((beams,), NEVER),
        every * 0, every[:, None].repeat(1, 6), ints([[*ends, 0]] * beams), settings,
    )  # fmt: skip
    given = {"row": every, "heads": every[:1], "active": every * 0 + 1, "beams": beams, "candidates": 4 * beams}
    return tables, {**given, "ends": max(1, len(ends)), "longest": 6}


def test_beams_change_places(implementation):
    """Both continue the one of the other, and what each has read is found there."""
    tables, given = one_search(2, [-2.0, -1.0])
    tables.holders[:, :2] = ints([[0, 0], [0, 1]])
    likely = torch.tensor([[-0.5, -9.0], [-0.25, -8.0]])
    told = beam_step(likely, ints([[11, 12], [21, 22]]), lanes=tables, **given)
    assert told[0].tolist() == [[-1.25, -1.25, -2.5, NEVER, NEVER]]
    assert told[1].tolist() == [[1, 0, 21, 11, 0, 1, 0, 0, 1, 0, 1, 0, 21, 11, 22, 12, 0]]
    assert tables.holders.tolist()[0][:3] == [0, 1, 0]
    assert tables.holders.tolist()[1][:3] == [0, 0, 1]
    assert tables.last_token.tolist() == [21, 11]
    assert tables.scores.tolist() == [-1.25, -2.5]


def test_what_ends_takes_a_place(implementation):
    """The best candidate ends; with early stopping and one beam that is the end of the search."""
    tables, given = one_search(1, [0.0], early=1, penalty=2.0, ends=(7,))
    told = beam_step(torch.tensor([[-1.0, -2.0]]), ints([[7, 5]]), lanes=tables, **given)
    assert told[0].tolist() == [[-1.0, -2.0, -0.25]]
    assert told[1].tolist() == [[0, 5, -1, 1, 0, 0, 7, 5, 1]]
    assert (tables.finished.tolist(), tables.ended.tolist()) == ([-0.25], [1])


def test_what_is_no_number_is_told(implementation):
    tables, given = one_search(2, [0.0, -1.0])
    likely = torch.tensor([[-1.0, -2.0], [torch.nan, -3.0]])
    assert beam_step(likely, ints([[0, 0], [0, 0]]), lanes=tables, **given)[0][0, 0].isnan()


def test_more_beams_than_the_kernel_has_room_for(implementation, reference):
    tables, given = one_search(9, [-0.5 * beam for beam in range(9)], ends=(3, 4))
    expected = copied(tables)
    values, ids = random_likely(9, 50, equals=False)
    told = beam_step(values, ids, lanes=tables, **given)
    wanted = reference.beam_step(values, ids, lanes=expected, **given)
    assert all(torch.equal(part, other) for part, other in zip((*told, *tables), (*wanted, *expected), strict=True))
