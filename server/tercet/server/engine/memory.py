"""How many pages of KV cache an engine gets from its share of the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.engine.beam_tables import beam_bytes
from tercet.server.engine.lanes import aligned, lane_bytes
from tercet.server.engine.pages import pages_of
from tercet.server.engine.sampler import CLASSES
from tercet.server.engine.tuning import decode_buckets, encoder_buckets

if TYPE_CHECKING:
    from tercet.server.engine.tuning import EncoderBucket
    from tercet.server.models import Model
    from tercet.server.wire import EngineSettings

MIB, GIB = 1 << 20, 1 << 30
FLOAT_BYTES = 4
# Hidden-sized tensors alive at once in a layer: residual, norm, q, k, v, attention and its projection.
HIDDEN_BUFFERS = 8
# Vocabulary-sized rows alive at once: logits, and what sampling sorts and sums. Keys of the likeliest tokens, where no
# logits are written, take less.
LOGIT_BUFFERS = 4

# Tables of which lane holds each key that are alive at once, beside the one that stays.
HOLDER_BUFFERS = 2

# What a driver keeps of a captured graph: an allowance, two kilobytes for each of a thousand launches.
GRAPH_BYTES = 2 << 20

# Tokens of a batch unless set. A CPU gains nothing from more, and its caches lose the activations.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 8192
# A small encoder's: fewer don't fill a GPU, and more bring nothing where they fit its cache as well.
LEAST_CACHED_TOKENS, MOST_CACHED_TOKENS = 4096, 16384
CACHED_TOKENS_STEP = 1024


class TooLargeError(Exception):
    """A model that doesn't fit its share of memory; the message is one line for the user, with the numbers."""


def activation_bytes(model: Model, settings: EngineSettings) -> int:
    """An upper estimate of what the largest batch needs beside weights and pages."""
    layer = settings.max_batch_tokens * _layer_elements(model) + _beam_elements(model, settings)
    return FLOAT_BYTES * (layer + _head_elements(model, settings))


def graph_bytes(model: Model, settings: EngineSettings) -> int:
    """An upper estimate of what replayed batches need: one pool for the largest, and the outputs of all."""
    tokens = [bucket.tokens for bucket in encoder_buckets_of(model, settings)]
    rows = decode_buckets(settings.max_rows) if generates(model) else ()
    graphs = len(tokens) + len(rows) * (1 + len(CLASSES)) + 2 * sum(count > 1 for count in rows)
    pool = max((0, *tokens, *rows)) * _layer_elements(model) + (_head_elements(model, settings) if rows else 0)
    pool += _beam_elements(model, settings)
    outputs = sum((*tokens, *rows, *rows)) * model.hidden_size
    return FLOAT_BYTES * (pool + outputs) + GRAPH_BYTES * graphs


def encoder_buckets_of(model: Model, settings: EngineSettings) -> tuple[EncoderBucket, ...]:
    """The encoder batches that are replayed of a model: none of one without an encoder."""
    if model.spec.encoder is None:
        return ()
    return encoder_buckets(settings.max_batch_tokens, settings.max_rows, longest_read(model, settings))


def batch_tokens(model: Model, l2_bytes: int | None) -> int:
    """The tokens of one batch that suit a model and a device, whose L2 cache has so many bytes; None on a CPU.

    An encoder's matrix products read and write little for each multiplication where it is narrow: of hidden size 384
    they are bound by an H100's memory unless they find their activations in its L2 cache (a product of [n, d] and
    [d, d] in 2 bytes does d / 2 operations a byte, and the ridge is at 295). So its batch is as large as the cache has
    room for the widest product of a layer: what that reads, what it writes, and the residual beside it. Wider encoders
    are bound by arithmetic, and what generates also decodes, whose batches are small: they take the general size.
    """
    if l2_bytes is None:
        return CPU_BATCH_TOKENS
    stack = model.spec.encoder
    if model.family != "encoder" or stack is None:
        return GPU_BATCH_TOKENS
    attention = (2 * stack.heads + 2 * stack.kv_heads) * stack.head_dim
    widest = stack.hidden_size + max(attention, stack.hidden_size + stack.intermediate_size * (1 + stack.gated))
    cached = l2_bytes // (model.dtype.itemsize * widest) // CACHED_TOKENS_STEP * CACHED_TOKENS_STEP
    if cached < LEAST_CACHED_TOKENS:
        return GPU_BATCH_TOKENS
    # What is read whole has to fit one batch, as it would otherwise.
    return max(min(cached, MOST_CACHED_TOKENS), min(model.max_length, GPU_BATCH_TOKENS))


def generates(model: Model) -> bool:
    """Whether a model writes text, and so needs a cache."""
    return model.spec.head is not None and model.spec.head.task == "generate"


def longest_read(model: Model, settings: EngineSettings) -> int:
    """Tokens of the longest sequence that is read whole: in one batch, which bounds it."""
    return min(model.max_length, settings.max_batch_tokens)


def longest_sequence(model: Model, settings: EngineSettings) -> int:
    """Tokens of the longest sequence. A decoder generates from prompts read in chunks; a seq2seq model has one limit
    for what its encoder reads whole and for its decoder.
    """
    prefills = model.family == "decoder" and generates(model)
    return model.max_length if prefills else longest_read(model, settings)


def longest_sequence_pages(model: Model, settings: EngineSettings) -> int:
    """Pages of one sequence of the greatest length, and of as long a source where the model has sources."""
    return pages_of(longest_sequence(model, settings), settings.page_size) * (2 if model.family == "seq2seq" else 1)


def working_bytes(model: Model, settings: EngineSettings, *, replays: bool) -> int:
    """What an engine needs beside weights and pages: for a batch, for its lanes, and for graphs if it `replays` any."""
    pages = lane_pages(model, settings)
    beams = beam_bytes(aligned(pages[0]) * settings.page_size) if generates(model) else 0
    lanes = settings.max_rows * (lane_bytes(*pages) + beams)
    return activation_bytes(model, settings) + lanes + (graph_bytes(model, settings) if replays else 0)


def lane_pages(model: Model, settings: EngineSettings) -> tuple[int, int]:
    """The most pages of a row and of its source: what a lane has room for."""
    if not generates(model):
        return 0, 0
    pages = pages_of(longest_sequence(model, settings), settings.page_size)
    return pages, pages if model.family == "seq2seq" else 0


def count_pages(model: Model, settings: EngineSettings, activations: int) -> int:
    """The pages that fit after weights and activations, but no more than every row could fill; 0 where none is needed.

    Raises:
        TooLargeError: weights and activations don't fit, or not even one sequence of the greatest length does.
    """
    left = settings.memory - model.weight_bytes - activations
    held = (
        f"its share of memory is {_size(settings.memory)}, "
        f"its weights take {_size(model.weight_bytes)} and a batch {_size(activations)}"
    )
    if left < 0:
        raise TooLargeError(f"{held}; raise --memory or lower --max-batch-tokens")
    if not generates(model):
        return 0
    sequence = longest_sequence_pages(model, settings)
    fit = left // model.cache_bytes_per_page(settings.page_size)
    if fit < sequence:
        raise TooLargeError(
            f"{held}, which leaves {fit} pages of {settings.page_size} tokens; one sequence of "
            f"{longest_sequence(model, settings)} tokens needs {sequence}; lower --max-length or raise --memory"
        )
    return min(fit, settings.max_rows * sequence)


def _layer_elements(model: Model) -> int:
    """What a layer holds of each token."""
    stacks = model.spec.stacks.values()
    hidden = max(stack.hidden_size + stack.heads * stack.head_dim for stack in stacks)
    return HIDDEN_BUFFERS * hidden + max(stack.intermediate_size * (3 if stack.gated else 2) for stack in stacks)


def _beam_elements(model: Model, settings: EngineSettings) -> int:
    """What tells where the keys of beams are, of every row: for attention, and while it changes."""
    return settings.max_rows * HOLDER_BUFFERS * lane_pages(model, settings)[0] * settings.page_size


def _head_elements(model: Model, settings: EngineSettings) -> int:
    head = model.spec.head
    if head is None:
        return 0
    if head.task in ("generate", "fill_mask"):
        return settings.max_rows * (LOGIT_BUFFERS * head.outputs + 2 * (head.dense or 0))
    return settings.max_batch_tokens * (2 * head.outputs + 2 * (head.dense or 0))


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"
