"""What an engine is sent: how it starts, by the supervisor, and what it is asked, by the front ends."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Literal

import msgspec

from tercet.server.wire.ids import TokenIds

Pooling = Literal["mean", "cls", "last", "max", "none"]


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an engine needs to start: `python -m tercet.server.engine FOLDER JSON`."""

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
    """One of the names in `tercet.server.config`."""
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
    """Tokens of one batch; 0 is what suits the model and the device."""
    page_size: int = 16
    """Tokens of one page of KV cache."""
    prefix_cache: bool = True
    """Whether requests find what others have computed of the same prompts and sources."""


class Embed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One sequence to embed. Answered by one `Embedding` or one `Rejected`."""

    id: int
    """Chosen by the front end, counting up from the first of its `Welcome`."""
    token_ids: TokenIds
    type_ids: TokenIds | None = None
    """Segment of each token; None is all 0."""
    pooling: Pooling
    """"none" is a vector a token."""
    normalize: bool
    dimensions: int | None = None
    """Leading components kept, before vectors are normalised; None is all."""
    deadline: float | None = None
    """time.monotonic() after which nobody waits for the answer; the clock is the machine's."""


class Embeds(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Sequences to embed alike: `Embed` in columns. Answered by one `Embeddings`."""

    id: int
    """Its own, and that of the first sequence; those of the others count up from it."""
    lengths: TokenIds
    """Tokens of each."""
    token_ids: TokenIds
    """One sequence behind the other."""
    type_ids: TokenIds | None = None
    pooling: Pooling
    normalize: bool
    dimensions: int | None = None
    deadline: float | None = None

    def rows(self) -> list[Embed]:
        """Each sequence. Raises ValueError where there is none, or the columns do not fit each other."""
        tokens, types = self.token_ids, self.type_ids
        if not sum(self.lengths) == len(tokens) == len(types or tokens) or min(self.lengths, default=-1) < 0:
            raise ValueError(f"{len(tokens)} token ids are not of sequences of {sum(self.lengths)} in all")
        return [
            Embed(
                id=id,
                token_ids=tokens[first:last],
                type_ids=types and types[first:last],
                pooling=self.pooling,
                normalize=self.normalize,
                dimensions=self.dimensions,
                deadline=self.deadline,
            )
            for id, (first, last) in enumerate(pairwise(accumulate(self.lengths, initial=0)), self.id)
        ]


class Predict(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """One sequence for a head that classifies, tags or answers. Answered by one `Prediction` or one `Rejected`."""

    id: int
    token_ids: TokenIds
    """For seq2seq the source."""
    type_ids: TokenIds | None = None
    decoder_ids: TokenIds = msgspec.field(default_factory=lambda: TokenIds("i"))
    """What a seq2seq decoder reads; empty for the other families."""
    last: int | None = None
    """The token that a head which reads the last one reads, an index; None is the last."""
    deadline: float | None = None


class FillMask(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Candidates for some places of one sequence. Answered by one `Candidates` or one `Rejected`."""

    id: int
    token_ids: TokenIds
    type_ids: TokenIds | None = None
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
    token_ids: TokenIds
    """The text (decoder) or the source (seq2seq)."""
    decoder_ids: TokenIds = msgspec.field(default_factory=lambda: TokenIds("i"))
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
    """The first token to generate, where the decoder starts from one token, as in transformers."""
    forced_eos_ids: list[int] = []
    """What is generated last where the output reaches its limit; several are equally likely."""
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

    Answered by `Cached` where some of it was, then by `Tokens` for each sample until each has a finish reason, or by
    one `Rejected`. Beam search answers with one `Tokens` for each of the `n` best beams, best first, when it ends.
    """

    id: int
    token_ids: TokenIds
    """The prompt; for seq2seq the source."""
    decoder_ids: TokenIds = msgspec.field(default_factory=lambda: TokenIds("i"))
    """What a seq2seq decoder starts from (decoder_start_token_id ...); empty for decoders."""
    sampling: Sampling
    n: int = 1
    eos_ids: list[int] = []
    """End of sequence: finish reason "eos", suppressed before min_new_tokens."""
    stop_ids: list[int] = []
    """The request's own stop tokens: finish reason "stop", suppressed before min_new_tokens too."""
    cache_salt: str = ""
    """What is computed for one salt is never used for another."""
    deadline: float | None = None


class Requests(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Several at once, in one message."""

    requests: list[Embeds | Predict | FillMask | Score | Generate]


class Cancel(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Stops a request, or one sample of it, at the next step; its pages are freed. Nothing more is sent for it.

    The service also sends it for a sample whose text met a stop string. Unknown ids are ignored.
    """

    id: int
    sample: int | None = None
    """None is all of the request."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """From the supervisor: ends the engine's process at once; draining is the front ends' matter."""


Request = Embeds | Predict | FillMask | Score | Generate
ToEngine = Request | Requests | Cancel | Stop
