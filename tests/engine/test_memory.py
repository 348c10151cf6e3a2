"""How many pages an engine gets, and the numbers it refuses with."""

from types import SimpleNamespace

import pytest
import torch

from support.engine import settings
from support.null_model import NullModel
from tercet.server.engine.beam_tables import BeamTables
from tercet.server.engine.lanes import Lanes
from tercet.server.engine.memory import (
    TooLargeError,
    activation_bytes,
    batch_tokens,
    count_pages,
    lane_pages,
    working_bytes,
)

MIB = 1 << 20


class Weighty(NullModel):
    """64 tokens a sequence at most; a page of 4 tokens is 64 KiB."""

    def cache_bytes_per_page(self, page_size):
        return page_size << 14


@pytest.mark.parametrize(
    ("family", "memory", "pages"),
    [
        ("decoder", 5 * MIB, 16),  # exactly one sequence
        ("decoder", 5 * MIB + 70_000, 17),
        ("decoder", 500 * MIB, 8 * 16),  # as many as all rows can fill
        ("seq2seq", 500 * MIB, 8 * 32),
        ("encoder", 4 * MIB, 0),
    ],
)
def test_pages_fill_what_is_left(family, memory, pages):
    assert count_pages(Weighty(family, weight_bytes=3 * MIB), settings(memory=memory), activations=MIB) == pages


def test_a_batch_bounds_the_sequences_of_an_encoder():
    """A seq2seq model of 512 tokens whose sources are at most 64: pages for 64 and 64 are enough."""
    model = Weighty("seq2seq", max_length=512, weight_bytes=3 * MIB)
    assert count_pages(model, settings(memory=6 * MIB, max_batch_tokens=64), activations=MIB) == 32


@pytest.mark.parametrize(
    ("family", "memory", "words"),
    [
        ("decoder", 4 * MIB, "leaves 0 pages of 4 tokens; one sequence of 64 tokens needs 16"),
        ("decoder", 5 * MIB - 1, "leaves 15 pages of 4 tokens; one sequence of 64 tokens needs 16"),
        ("seq2seq", 6 * MIB - 1, "leaves 31 pages of 4 tokens; one sequence of 64 tokens needs 32"),
        ("encoder", 3 * MIB, "^its share of memory is 3.0 MiB, its weights take 3.0 MiB and a batch 1.0 MiB"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(family, memory, words):
    with pytest.raises(TooLargeError, match=words):
        count_pages(Weighty(family, weight_bytes=3 * MIB), settings(memory=memory), activations=MIB)


@pytest.mark.parametrize(
    ("task", "outputs", "more"),
    [
        ("classify", 5, 64 * 2 * 5),  # every token of a batch
        ("fill_mask", 1000, 8 * 4 * 1000),  # as many rows of the vocabulary as are computed at once
    ],
)
def test_a_head_takes_memory_too(task, outputs, more):
    head = SimpleNamespace(task=task, outputs=outputs, dense=None)
    base, headed = (activation_bytes(NullModel("encoder", head=chosen), settings()) for chosen in (None, head))
    assert headed - base == 4 * more


@pytest.mark.parametrize("family", ["decoder", "seq2seq"])
def test_what_is_known_of_rows_takes_memory_too(family):
    model, chosen = NullModel(family), settings(max_rows=8)
    cpu = torch.device("cpu")
    lanes = Lanes(8, *lane_pages(model, chosen), cpu)
    beams = BeamTables(8, lanes.page_table.shape[1] * chosen.page_size, cpu)
    tables = [lanes._flat, *vars(beams).values()]
    counted = working_bytes(model, chosen, replays=False) - activation_bytes(model, chosen)
    assert counted == sum(table.nbytes for table in tables)


H100_L2, A100_L2, T4_L2 = 50 * MIB, 40 * MIB, 4 * MIB


@pytest.mark.parametrize(
    ("width", "l2", "tokens"),
    [
        ((384, 1536, 12, 32, False), H100_L2, 11264),  # MiniLM: 2 * (384 + 384 + 1536) bytes a token
        ((384, 1536, 12, 32, False), A100_L2, 8192),
        ((128, 512, 2, 64, False), H100_L2, 16384),
        ((768, 3072, 12, 64, False), H100_L2, 5120),
        ((768, 1152, 12, 64, True), H100_L2, 8192),  # as long as the longest text, of 8192 tokens
        ((512, 512, 8, 64, False), H100_L2, 10240),  # qkv and what attention makes of it are the widest
        ((1536, 6144, 24, 64, False), H100_L2, 8192),  # wide
        ((384, 1536, 12, 32, False), T4_L2, 8192),  # 910 tokens would fit
        ((384, 1536, 12, 32, False), None, 2048),
    ],
)
def test_a_batch_of_a_small_encoder_fits_the_cache(width, l2, tokens):
    assert batch_tokens(encoder(*width), l2) == tokens


def test_what_generates_takes_the_general_batch():
    assert batch_tokens(NullModel("decoder"), H100_L2) == 8192
    assert batch_tokens(NullModel("seq2seq"), None) == 2048


def encoder(hidden, intermediate, heads, head_dim, gated):
    """As much of a bf16 encoder as its batch depends on."""
    stack = SimpleNamespace(
        hidden_size=hidden, intermediate_size=intermediate, heads=heads, kv_heads=heads, head_dim=head_dim, gated=gated
    )
    return SimpleNamespace(
        family="encoder",
        spec=SimpleNamespace(encoder=stack),
        max_length=8192 if gated else 512,
        dtype=torch.bfloat16,
    )
