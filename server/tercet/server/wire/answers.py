"""What an engine sends.

To the supervisor: what it learnt while it started, and what its steps were. To each front end: the answers to what that
one asked.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

Family = Literal["encoder", "decoder", "seq2seq"]
FinishReason = Literal["eos", "stop", "length"]
Phase = Literal["encode", "prefill", "decode"]


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine learnt of its checkpoint and chose for it."""

    architecture: str
    family: Family
    tasks: list[str]
    """"embed", "classify", "tag", "answer", "fill_mask", "score", "generate": what its family and head can do. The
    service adds what needs text: "chat" where there is a template, "rerank" and "zero_shot" by the labels."""
    max_length: int
    """Tokens of a sequence that is generated."""
    longest_read: int
    """Tokens of one that is read whole, in one batch: to embed, for a head, to score, or as a source."""
    vocab_size: int
    target_vocab_size: int
    """Tokens there are to write; another number than to read where a seq2seq model has two vocabularies."""
    embedding_size: int | None
    labels: int = 0
    """Outputs of a head that classifies or tags; 0 without one."""
    dtype: str
    quantization_error: float | None = None
    """‖quantized - weights‖ / ‖weights‖ of the linear maps of layers in "fp8"; None where nothing is quantized."""
    device: str
    parameters: int
    pages: int
    """Pages of KV cache, 0 of what does not generate."""
    page_size: int
    memory: int
    """Bytes held: weights and pages."""


class Loading(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Progress before `Ready`, at most ten a second."""

    incarnation: int
    stage: Literal["weights", "pages", "warm-up"]
    done: int
    total: int
    """Bytes for weights; steps otherwise."""


class Ready(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The engine is warm and takes requests."""

    incarnation: int
    model: ModelInfo


class Failed(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The engine can't start, and why, in one line for the user: the file and the tensor or key. It exits after."""

    incarnation: int
    message: str


class Embedding(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The vector of one `Embed`."""

    id: int
    data: bytes
    """float32, little-endian, [rows, size]: one row, or one a token with pooling "none"."""


class Prediction(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """What the head made of one `Predict`."""

    id: int
    data: bytes
    """float32, little-endian: [labels] of a head that classifies, [tokens, labels] of one that tags, [tokens, 2] (start
    and end of an answer) of one that answers."""


class Candidates(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The candidates for each place of one `FillMask`, likeliest first."""

    id: int
    token_ids: list[list[int]]
    logprobs: list[list[float]]
    """Over the whole vocabulary, whatever the targets."""


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """How likely a token was, and what the likeliest were."""

    logprob: float
    top_ids: list[int] = []
    """Likeliest first."""
    top_logprobs: list[float] = []


class Scored(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """How likely the tokens of one `Score` are, from `first` on."""

    id: int
    logprobs: list[TokenLogprob]


class Tokens(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """New tokens of one sample of one `Generate`."""

    id: int
    sample: int
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    """Set on the sample's last message."""
    logprobs: list[TokenLogprob] | None = None
    """One a token, where asked for."""
    score: float | None = None
    """Of a beam: the sum of its log probabilities divided by length ** length_penalty. -1e9, and no tokens, where
    too few beams have ended."""


class NextTokens(msgspec.Struct, frozen=True, kw_only=True):
    """One new token of each of many samples, where there is nothing else to say of them: `Tokens` in columns."""

    ids: list[int]
    samples: list[int]
    """Empty where all are 0."""
    token_ids: list[int]

    def rows(self) -> Iterator[tuple[int, int, int]]:
        """Id, sample and token of each. Raises ValueError where the columns are not equally long."""
        return zip(self.ids, self.samples or repeat(0, len(self.ids)), self.token_ids, strict=True)


class Rejected(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A request the engine gave up; its other requests are untouched."""

    id: int
    reason: Literal["deadline", "invalid", "internal"]
    message: str


class Embeddings(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The answer to `Embeds`."""

    id: int
    data: bytes
    """The vectors of one sequence behind the other's, as `Embedding` has them, without those that were given up."""
    rejected: dict[int, Rejected]
    """Those, by their places."""


class Cached(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """How much of one `Generate` was not read, since it was in pages; at most one, not after its first token's step."""

    id: int
    tokens: int
    """Of the prompt, for seq2seq of the source; not told where there are none."""


Output = Embedding | Embeddings | Prediction | Candidates | Scored | Cached | Tokens | Rejected


class Welcome(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The first message on a front end's connection."""

    incarnation: int
    first_id: int
    """The ids of its requests count up from here."""


class Answers(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """What one step brought to the requests of one front end: one message a step."""

    incarnation: int
    outputs: list[Output]
    next_tokens: NextTokens | None = None
    """Come before the outputs."""


class StepStats(msgspec.Struct, frozen=True, kw_only=True):
    """What one step was; the supervisor turns it into metrics."""

    phase: Phase
    """The heaviest phase present: encode > prefill > decode."""
    rows: int
    real_tokens: int
    padding_tokens: int
    seconds: float
    host_to_device_copies: int
    """Of the batch's packed buffer: 1, or 0 where the device knew everything."""
    replayed_steps: int = 0
    """1 if the model ran from a graph."""
    prompt_tokens: int
    """Tokens of prompts and sources first read in this step, with those found in pages before them."""
    generated_tokens: int
    """Of a beam search those of every beam, whether it is answered or given up."""
    recomputed_tokens: int
    """Tokens read again after a preemption."""


class CacheCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How prompts and sources were looked for in pages, in tokens since the engine started.

    Each request counts once, when it first starts, whatever the number of its outputs.
    """

    prefix_queries: int = 0
    """Of the prompts of decoders."""
    prefix_hits: int = 0
    """Those that were not read."""
    source_queries: int = 0
    """Of the sources of seq2seq models."""
    source_hits: int = 0
    """Those that were not encoded."""
    evictions: int = 0
    """Pages whose content was given up for other content."""


class StepResult(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Everything one step brought. The supervisor gets it without outputs and tokens, which go to who asked, and with
    the figures of the steps before it that it has not heard of.
    """

    incarnation: int
    outputs: list[Output]
    next_tokens: NextTokens | None = None
    """Come before the outputs."""
    stats: list[StepStats]
    """One for each forward pass; empty where only cancellations were handled."""
    running: int
    """Sequences in batches after the step, each beam one."""
    waiting: int
    """Those in the queue, where a beam search is one."""
    pages_used: int
    pages_cached: int = 0
    """Of the others those in which something can be found."""
    cache: CacheCounts = CacheCounts()
    preemptions: int
    """Since the engine started."""
    kernel_launches: dict[str, int]
    """"op/impl" -> calls since the engine started; impl is "triton", "cpu" or "reference"."""

    @property
    def answers(self) -> list[Output]:
        """The outputs, and before them the tokens that come in columns, each as `Tokens`."""
        rows = self.next_tokens.rows() if self.next_tokens is not None else ()
        return [*(Tokens(id=id, sample=sample, token_ids=[token]) for id, sample, token in rows), *self.outputs]


FromEngine = Loading | Ready | Failed | StepResult
"""To the supervisor."""
ToFrontEnd = Welcome | Answers
