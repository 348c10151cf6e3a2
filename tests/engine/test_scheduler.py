"""The scheduler alone, driven through random loads: budgets hold, none starves, little is padded, no page is lost."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.server.engine.pages import PagePool
from tercet.server.engine.scheduler import Scheduler
from tercet.server.engine.sequence import generation_request, reading_request
from tercet.server.wire import Embed, Generate, Sampling, token_ids

PAGE_SIZE = 4
LONGEST = 40


def make(family, arrival, prompt, new_tokens, samples=1, *, alike=0, salt=""):
    """A generation; its first `alike` tokens are everybody's."""
    sampling = Sampling(max_new_tokens=new_tokens)
    ids = token_ids(([1] * alike + [arrival + 3] * prompt)[:prompt])
    start = token_ids([0] if family == "seq2seq" else [])
    message = Generate(
        id=arrival, token_ids=ids, decoder_ids=start, sampling=sampling, n=samples, cache_salt=salt
    )  # fmt: skip
    return generation_request(message, arrival, family, LONGEST)


def embed(arrival, length):
    ids = token_ids([1] * length)
    return reading_request(Embed(id=arrival, token_ids=ids, pooling="mean", normalize=False), arrival)


def storage(lengths, padded):
    return len(lengths) * max(lengths, default=0) if padded else sum(lengths)


def perform(scheduler, plan):
    """Does to the sequences what the engine does when a step has gone well; returns those that ended."""
    ended = []
    for sequence in plan.encode:
        sequence.request.encoded = True
        if sequence.request.reading:
            ended.append(sequence)
    scheduler.cache.keep_sources(plan.encode)
    for sequence, length in plan.decode:
        complete = length == sequence.remaining
        sequence.computed += length
        sequence.read = max(sequence.read, sequence.computed)
        scheduler.cache.keep([(sequence, sequence.computed)])
        if complete and sequence.accept(2):
            ended.append(sequence)
    for sequence in ended:
        scheduler.remove(sequence)
    return ended


class Memory:
    """What is really in the pages: for each place the text up to it, or nothing where a batch failed."""

    def __init__(self):
        self.places = {}

    def run(self, plan, failing):
        """Writes what a step computes; everything computed is of what it should be."""
        for sequence in plan.encode:
            for index, page in enumerate(sequence.request.cross_pages):
                self.places[page] = None if sequence in failing else (*whose(sequence), index)
        for sequence, length in plan.decode:
            for index, page in enumerate(sequence.request.cross_pages):
                assert self.places[page] == (*whose(sequence), index)
            for position in range(sequence.computed + length):
                place = sequence.pages[position // PAGE_SIZE], position % PAGE_SIZE
                text = *whose(sequence), tuple(sequence.tokens[: position + 1])
                if position < sequence.computed:
                    assert self.places[place] == text
                else:
                    self.places[place] = None if sequence in failing else text


def whose(sequence):
    return sequence.request.salt, tuple(sequence.request.source)


loads = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.integers(1, 30),
            "new_tokens": st.integers(1, 12),
            "samples": st.sampled_from([1, 1, 1, 3]),
            "alike": st.sampled_from([0, 4, 9, 30]),
            "salt": st.sampled_from(["", "", "a"]),
            "step": st.integers(0, 6),
        }
    ),
    min_size=1, max_size=25,
)  # fmt: skip


@settings(max_examples=150)
@given(
    family=st.sampled_from(["encoder", "decoder", "seq2seq"]),
    load=loads,
    padded=st.booleans(),
    prefix_cache=st.booleans(),
    max_rows=st.integers(1, 6),
    pages=st.integers(12, 40),
    cancelled=st.sets(st.integers(0, 24), max_size=5),
    failing=st.sets(st.integers(0, 24), max_size=3),
)
def test_any_load_is_served_within_its_limits(family, load, padded, prefix_cache, max_rows, pages, cancelled, failing):
    """Each request arrives in its `step`; some leave, and some fail in the third batch that they are in."""
    pool = PagePool(pages)
    scheduler = Scheduler(
        pool, page_size=PAGE_SIZE, max_batch_tokens=32, max_rows=max_rows, padded=padded, prefix_cache=prefix_cache
    )
    memory = Memory()
    coming = sorted(enumerate(load), key=lambda item: item[1]["step"])
    alive, steps, batches = [], 0, Counter()
    while coming or scheduler.waiting or scheduler.running:
        while coming and coming[0][1]["step"] <= steps:
            arrival, options = coming.pop(0)
            options = {name: value for name, value in options.items() if name != "step"}
            whole = family == "encoder" or arrival % 4 == 3
            request = embed(arrival, options["prompt"]) if whole else make(family, arrival, **options)
            alive += request.sequences
            scheduler.add(request)
        for sequence in [s for s in alive if s.request.arrival in cancelled and steps == 4]:
            scheduler.remove(sequence)
        plan = scheduler.schedule()
        assert bool(plan.encode or plan.decode) == bool(scheduler.waiting or scheduler.running)
        check(scheduler, plan, pool, max_rows, padded)
        planned = [*plan.encode, *(sequence for sequence, _ in plan.decode)]
        batches.update({sequence.request.arrival for sequence in planned})
        failed = {s for s in planned if s.request.arrival in failing and batches[s.request.arrival] == 3}
        memory.run(plan, failed)
        for request in {sequence.request for sequence in failed}:
            for sequence in list(request.sequences):
                scheduler.remove(sequence)
        encode = [sequence for sequence in plan.encode if sequence.state == "running"]
        decode = [chunk for chunk in plan.decode if chunk[0].state == "running"]
        perform(scheduler, plan._replace(encode=encode, decode=decode))
        assert len(scheduler.running) <= max_rows
        steps += 1
        assert steps < 3000
    assert pool.used == 0
    assert all(sequence.state == "finished" for sequence in alive)
    assert not scheduler.cache._coming
    counts = scheduler.cache.counts
    assert (counts.prefix_queries + counts.source_queries > 0) <= prefix_cache
    assert counts.prefix_hits <= counts.prefix_queries
    assert counts.source_hits <= counts.source_queries


def check(scheduler, plan, pool, max_rows, padded):
    """What holds after every decision."""
    for lengths in ([len(s.request.source) for s in plan.encode], [length for _, length in plan.decode]):
        assert len(lengths) <= max_rows
        assert storage(lengths, padded) <= 32
        assert all(length > 0 for length in lengths)
    held = [page for sequence in scheduler.running for page in set(sequence.pages)]
    assert len(held) == sum(len(sequence.pages) for sequence in scheduler.running)
    written = [page for sequence, _ in plan.decode for page in sequence.pages[sequence.computed // PAGE_SIZE :]]
    # Where this batch writes, nobody else reads.
    crossed = [page for request in {s.request for s in scheduler.running} for page in request.cross_pages]
    assert all(held.count(page) == 1 and page not in crossed for page in written)
    written_cross = [page for sequence in plan.encode for page in sequence.request.cross_pages]
    assert all(crossed.count(page) == 1 and page not in held for page in written_cross)
    assert pool.used == len({*held, *crossed})
    assert 0 <= pool.cached <= pool.free
    for sequence, length in plan.decode:
        assert len(sequence.pages) * PAGE_SIZE >= sequence.computed + length
    assert not any(sequence.pages for sequence in scheduler.waiting)
    planned = [*plan.encode, *(sequence for sequence, _ in plan.decode)]
    if scheduler.running:
        assert any(scheduler.running[0] is sequence for sequence in planned)
    # A row that decodes is in every batch, whatever prompts there are; it waits only for pages of older ones.
    behind = [s for s in scheduler.running if s.remaining == 1 and not any(s is other for other in planned)]
    assert all(pool.free == 0 for _ in behind)


@pytest.mark.parametrize("padded", [False, True])
def test_the_oldest_source_is_in_the_next_batch(padded):
    """A stream of short ones never keeps a long one waiting."""
    scheduler = Scheduler(PagePool(0), page_size=1, max_batch_tokens=64, max_rows=8, padded=padded)
    scheduler.add(embed(0, 60))
    for arrival in range(1, 40):
        scheduler.add(embed(arrival, 3))
    while scheduler.waiting:
        oldest = scheduler.waiting[0]
        plan = scheduler.schedule()
        assert plan.encode[0] is oldest
        perform(scheduler, plan)


def test_batches_of_sorted_rows_are_well_filled():
    """Log-normal lengths, padded: at least nine tokens of ten are real; in arrival order, hardly half are."""
    rng = random.Random(0)
    lengths = [max(4, min(250, round(rng.lognormvariate(3.7, 0.8)))) for _ in range(1000)]
    scheduler = Scheduler(PagePool(0), page_size=1, max_batch_tokens=2048, max_rows=32, padded=True)
    for arrival, length in enumerate(lengths):
        scheduler.add(embed(arrival, length))
    stored = 0
    while scheduler.waiting:
        plan = scheduler.schedule()
        stored += storage([len(s.request.source) for s in plan.encode], padded=True)
        perform(scheduler, plan)
    assert sum(lengths) / stored > 0.9
    unsorted = sum(storage(lengths[first : first + 32], padded=True) for first in range(0, 1000, 32))
    assert sum(lengths) / unsorted < 0.5


def test_decoding_goes_before_prompts():
    scheduler = Scheduler(PagePool(64), page_size=PAGE_SIZE, max_batch_tokens=8, max_rows=4)
    scheduler.add(make("decoder", 0, 20, 4))
    scheduler.add(make("decoder", 1, 2, 4))
    lengths = []
    while scheduler.waiting or scheduler.running:
        plan = scheduler.schedule()
        lengths.append([(sequence.request.arrival, length) for sequence, length in plan.decode])
        perform(scheduler, plan)
    assert lengths[:4] == [[(0, 8)], [(0, 8)], [(0, 4), (1, 2)], [(0, 1), (1, 1)]]


def test_the_youngest_gives_up_its_pages():
    pool = PagePool(6)
    scheduler = Scheduler(pool, page_size=PAGE_SIZE, max_batch_tokens=32, max_rows=4)
    first, second = make("decoder", 0, 7, 12), make("decoder", 1, 7, 12)
    ended = []
    scheduler.add(first)
    scheduler.add(second)
    while scheduler.waiting or scheduler.running:
        plan = scheduler.schedule()
        ended += perform(scheduler, plan)
    assert [sequence.request for sequence in ended] == [first, second]
    assert scheduler.preemptions == 1
    assert pool.used == 0


def test_a_finished_sequence_is_removed_once():
    pool = PagePool(6)
    scheduler = Scheduler(pool, page_size=PAGE_SIZE, max_batch_tokens=32, max_rows=4)
    request = make("decoder", 0, 5, 5)
    (sequence,) = request.sequences
    scheduler.add(request)
    scheduler.schedule()
    scheduler.remove(sequence)
    scheduler.remove(sequence)
    assert (pool.used, scheduler.running, scheduler.waiting) == (0, [], [])
