"""The messages between the service (front end) and an engine, and nothing else.

Frames are a 4-byte little-endian length followed by one msgpack-encoded message. The engine connects to a Unix socket
in a directory of mode 0700 that the supervisor made. End of file is the death of the other side. Every message of an
engine bears the incarnation it was started with, so that one of a dead engine is never taken for its successor's.

The front end never imports torch, the engine never imports grpc: this module imports neither.
"""

from __future__ import annotations

from typing import Literal

import msgspec

MAX_FRAME = 1 << 30  # bytes; a longer length prefix is a protocol error

Family = Literal["encoder", "decoder", "seq2seq"]
Pooling = Literal["mean", "cls", "last", "max", "none"]
FinishReason = Literal["eos", "stop", "length"]
Phase = Literal["encode", "prefill", "decode"]


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an engine needs to start: `python -m tercet.server.engine SOCKET JSON`."""

    name: str
    """The name the model is served under."""
    source: str
    """A local path: a Hugging Face folder or a .gguf file. The supervisor has resolved hub ids."""
    adapter: str | None = None
    """A local path: the folder of a PEFT LoRA adapter, merged into the weights as they are read."""
    allow_pickle: bool = False
    """Whether weights may be read from pytorch_model.bin (torch.load with weights_only)."""
    incarnation: int
    device: str
    """"cpu", "cuda:0"; never "auto"."""
    dtype: str
    """"auto", "float32", "tf32", "bfloat16", "float16"."""
    kernels: Literal["auto", "triton", "cpu", "reference"]
    layout: Literal["auto", "padded", "packed"]
    memory: int
    """The most bytes this engine may hold: weights, activations and pages."""
    threads: int
    """CPU threads for torch."""
    max_length: int | None
    """Tokens of a sequence; None is the checkpoint's own limit."""
    max_rows: int
    """Sequences of one batch."""
    max_batch_tokens: int
    """Tokens of one batch."""
    page_size: int = 16
    """Tokens of one page of KV cache."""


class Embed(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """One sequence to embed. Answered by one `Embedding` or one `Rejected`."""

    id: int
    """Chosen by the front end, unique within an incarnation."""
    token_ids: list[int]
    type_ids: list[int] | None = None
    """Segment of each token; None is all 0."""
    pooling: Pooling
    """"none" is a vector a token."""
    normalize: bool
    dimensions: int | None = None
    """Leading components kept, before vectors are normalised; None is all."""
    deadline: float | None = None
    """time.monotonic() after which nobody waits for the answer; the clock is the machine's."""


class Predict(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """One sequence for a head that classifies, tags or answers. Answered by one `Prediction` or one `Rejected`."""

    id: int
    token_ids: list[int]
    """For seq2seq the source."""
    type_ids: list[int] | None = None
    decoder_ids: list[int] = []
    """What a seq2seq decoder reads; empty for the other families."""
    last: int | None = None
    """The token that a head which reads the last one reads, an index; None is the last."""
    deadline: float | None = None


class FillMask(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Candidates for some places of one sequence. Answered by one `Candidates` or one `Rejected`."""

    id: int
    token_ids: list[int]
    type_ids: list[int] | None = None
    positions: list[int]
    """The places: indices into `token_ids`, at least one."""
    targets: list[int] = []
    """The candidates; empty is the vocabulary."""
    top_k: int
    """The most candidates of a place, at least 1."""
    deadline: float | None = None


class Score(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """How likely given tokens are. Answered by one `Scored` or one `Rejected`."""

    id: int
    token_ids: list[int]
    """The text (decoder) or the source (seq2seq)."""
    decoder_ids: list[int] = []
    """What a seq2seq decoder starts from and the target; empty for decoders."""
    first: int = 1
    """The first token to score, an index into the text (decoder) or `decoder_ids`, at least 1."""
    top_logprobs: int = 0
    """How many of the likeliest tokens are reported beside each."""
    deadline: float | None = None


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are chosen: every value concrete, already checked and defaulted by the service."""

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """0 is off."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    """Unsigned 64 bit; a draw is Philox(seed, sample, position)."""
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    """Token ids and what is added to their logits."""
    no_repeat_ngram_size: int = 0
    """0 is off."""
    encoder_no_repeat_ngram_size: int = 0
    """0 is off; of the source's n-grams, seq2seq alone."""
    bad_words: list[list[int]] = []
    """Token sequences that are not generated."""
    suppressed_ids: list[int] = []
    """Tokens that are never generated."""
    first_suppressed_ids: list[int] = []
    """Tokens that are not generated first."""
    forced_bos_id: int | None = None
    """The first token to generate."""
    forced_eos_ids: list[int] = []
    """The last token to generate where the output reaches its limit; of several the first."""
    logprobs: bool = False
    """Whether the log probability of each token is reported, before all of the above."""
    top_logprobs: int = 0
    """How many of the likeliest tokens are reported beside it."""
    num_beams: int = 1
    """1 is no beam search; else temperature is 0, and `n` of the beams are answered."""
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False


class Generate(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """One prompt to continue (decoder) or one source to transform (seq2seq), `n` times.

    Answered by `Tokens` for each sample until each has a finish reason, or by one `Rejected`. Beam search answers with
    one `Tokens` for each of the `n` best beams, best first, when it ends.
    """

    id: int
    token_ids: list[int]
    """The prompt; for seq2seq the source."""
    decoder_ids: list[int] = []
    """What a seq2seq decoder starts from (decoder_start_token_id ...); empty for decoders."""
    sampling: Sampling
    n: int = 1
    eos_ids: list[int] = []
    """End of sequence: finish reason "eos", suppressed before min_new_tokens."""
    stop_ids: list[int] = []
    """The request's own stop tokens: finish reason "stop", suppressed before min_new_tokens too."""
    deadline: float | None = None


class Cancel(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Stops a request, or one sample of it, at the next step; its pages are freed. Nothing more is sent for it.

    The service also sends it for a sample whose text met a stop string. Unknown ids are ignored.
    """

    id: int
    sample: int | None = None
    """None is all of the request."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Ends the engine's process at once; draining is the front end's matter."""


ToEngine = Embed | Predict | FillMask | Score | Generate | Cancel | Stop


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine learnt of its checkpoint and chose for it."""

    architecture: str
    family: Family
    tasks: list[str]
    """"embed", "classify", "tag", "answer", "fill_mask", "score", "generate": what its family and head can do. The
    service adds what needs text: "chat" where there is a template, "rerank" and "zero_shot" by the labels."""
    max_length: int
    vocab_size: int
    embedding_size: int | None
    labels: int = 0
    """Outputs of a head that classifies or tags; 0 without one."""
    dtype: str
    device: str
    parameters: int
    pages: int
    """Pages of KV cache, 0 for encoders."""
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
    """Of a beam: the sum of its log probabilities divided by length ** length_penalty."""


class Rejected(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A request the engine gave up; its other requests are untouched."""

    id: int
    reason: Literal["deadline", "invalid", "internal"]
    message: str


class StepStats(msgspec.Struct, frozen=True, kw_only=True):
    """What one step was; the front end turns it into metrics."""

    phase: Phase
    """The heaviest phase present: encode > prefill > decode."""
    rows: int
    real_tokens: int
    padding_tokens: int
    seconds: float
    host_to_device_copies: int
    """Of the batch's packed buffer: 1 on every device, 0 if nothing ran."""
    prompt_tokens: int
    """Tokens of prompts and sources first read in this step."""
    generated_tokens: int
    recomputed_tokens: int
    """Tokens read again after a preemption."""


class StepResult(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Everything one step brought: one message a step."""

    incarnation: int
    outputs: list[Embedding | Prediction | Candidates | Scored | Tokens | Rejected]
    stats: list[StepStats]
    """One for each forward pass of the step; empty where only cancellations were handled."""
    running: int
    waiting: int
    """Sequences in batches and in the queue, after the step."""
    pages_used: int
    preemptions: int
    """Since the engine started."""
    kernel_launches: dict[str, int]
    """"op/impl" -> calls since the engine started; impl is "triton", "cpu" or "reference"."""


FromEngine = Loading | Ready | Failed | StepResult

_LENGTH_BYTES = 4
_encoder = msgspec.msgpack.Encoder()
to_engine_decoder = msgspec.msgpack.Decoder(ToEngine)
from_engine_decoder = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """One frame: length prefix and message. Raises ValueError past MAX_FRAME."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise ValueError(f"message of {len(body)} bytes exceeds the frame limit of {MAX_FRAME}")
    return len(body).to_bytes(_LENGTH_BYTES, "little") + body


class FrameReader:
    """Cuts a byte stream into message bodies; feed it what the socket gave."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that `data` completed, in order. Raises ValueError on a length past MAX_FRAME."""
        self._buffer += data
        bodies: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH_BYTES:
            length = int.from_bytes(self._buffer[start : start + _LENGTH_BYTES], "little")
            if length > MAX_FRAME:
                raise ValueError(f"frame of {length} bytes exceeds the limit of {MAX_FRAME}")
            end = start + _LENGTH_BYTES + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[start + _LENGTH_BYTES : end]))
            start = end
        del self._buffer[:start]
        return bodies
