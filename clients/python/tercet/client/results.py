"""What the calls return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Answer",
    "Answers",
    "Family",
    "Fill",
    "FinishReason",
    "Generation",
    "HealthStatus",
    "Label",
    "ModelInfo",
    "ModelState",
    "Output",
    "Piece",
    "Ranked",
    "Score",
    "Span",
    "Task",
    "TokenLogprob",
    "Tokenized",
    "Usage",
]

# Beside these a newer server may say what this SDK does not know: "unspecified".
Family = Literal["encoder", "decoder", "seq2seq", "unspecified"]
Task = Literal[
    "embed", "generate", "chat", "rerank", "classify", "zero_shot", "tag", "fill_mask", "answer", "score", "unspecified"
]
ModelState = Literal["loading", "ready", "restarting", "failed", "draining", "unspecified"]
FinishReason = Literal["eos", "stop", "length"]
HealthStatus = Literal["SERVING", "NOT_SERVING", "UNKNOWN", "SERVICE_UNKNOWN"]


@dataclass(frozen=True)
class ModelInfo:
    """An architecture with one checkpoint loaded, served under a name."""

    name: str
    """What requests address: `model=`."""
    family: Family
    """"unspecified" while the model loads for the first time."""
    architecture: str
    """The skeleton, as Hugging Face spells model_type: "bert", "llama", "t5"."""
    tasks: list[Task]
    """What it can be asked."""
    state: ModelState
    max_length: int
    """The longest sequence it takes, in tokens, special tokens included."""
    vocab_size: int
    """Valid token ids are below it."""
    embedding_size: int | None
    """The width of an embedding; None for models that do not embed."""
    dtype: str
    """What it computes in: "float32", "tf32", "bfloat16", "float16", or "fp8", bfloat16 but for products of layers."""
    quantization_error: float | None
    """‖quantized - weights‖ / ‖weights‖ of a model in "fp8"; None of others."""
    device: str
    """Where it computes: "cpu", "cuda:0"."""
    parameters: int
    """How many weights it has."""
    labels: list[str]
    """What a model that classifies or tags tells apart."""
    mask_token: str | None
    """What stands for a token to fill in; None for models that fill no masks."""
    prompts: list[str]
    """What `prompt_name=` of `embed` takes."""
    generation_tasks: list[str]
    """What `task=` of `generate` takes."""
    languages: list[str]
    """What `source_lang=` and `target_lang=` take."""


@dataclass(frozen=True)
class Usage:
    """What a call consumed."""

    prompt_tokens: int
    """Tokens the model read, after truncation, special tokens included."""
    generated_tokens: int
    """Tokens the model generated, over all outputs, end-of-sequence tokens included."""
    cached_tokens: int
    """Of `prompt_tokens` those that did not have to be read, since the server had read them before."""


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was: natural logarithms of the model's own probabilities."""

    logprob: float
    top: list[tuple[int, float]]
    """The likeliest tokens and theirs, likeliest first, as many as were asked for."""


@dataclass(frozen=True)
class Output:
    """One of the n outputs of a call."""

    index: int
    text: str
    """Without the prompt, unless it is echoed, and without the stop string."""
    token_ids: list[int]
    """Every generated token, the one that ended it included."""
    finish_reason: FinishReason | None
    """Why it ended: "eos" by the model, "stop" by a stop string or token, "length" by a limit."""
    logprobs: list[TokenLogprob]
    """One for each of `token_ids`, if asked for."""
    score: float | None
    """Of a beam: the sum of its log probabilities divided by its length to the power of length_penalty. -1e9, and there
    are no tokens, where fewer beams have ended than were asked for.
    """


@dataclass(frozen=True)
class Generation:
    """Everything that a call generated. `text`, `token_ids` and `finish_reason` are the first output's."""

    model: str
    """The model that answered."""
    outputs: list[Output]
    """All n, by index."""
    usage: Usage
    truncated: bool
    """Whether the prompt was cut."""
    seed: int
    """The seed that was used: the same seed makes the same draws."""
    prompt_token_ids: list[int]
    """The prompt's tokens, with echo."""
    prompt_logprobs: list[TokenLogprob]
    """One for each of them but the first, with echo and logprobs."""

    @property
    def text(self) -> str:
        """The first output's text."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        """The first output's tokens."""
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first output ended."""
        return self.outputs[0].finish_reason


@dataclass(frozen=True)
class Piece:
    """What is new of one output of a stream."""

    text: str
    """May be empty while a character or a possible stop string is incomplete."""
    token_ids: list[int]
    index: int
    """Which of the n outputs it continues."""
    finish_reason: FinishReason | None
    """Set on the output's last piece."""
    usage: Usage | None
    """Set on the stream's last piece, over all outputs."""
    truncated: bool
    """Whether the prompt was cut."""
    seed: int
    """The seed in use."""
    logprobs: list[TokenLogprob]
    """One for each of `token_ids`, if asked for."""
    score: float | None
    """Of a beam, on its last piece; as `Output.score`."""
    prompt_token_ids: list[int]
    """The prompt's tokens, with echo, on the stream's first piece."""
    prompt_logprobs: list[TokenLogprob]
    """One for each of them but the first, with echo and logprobs."""


@dataclass(frozen=True)
class Tokenized:
    """A text's tokens."""

    token_ids: list[int]
    tokens: list[str]
    """As the vocabulary spells them."""
    offsets: list[tuple[int, int]]
    """Start and end of each token in the text, end exclusive, in characters; (0, 0) for special tokens."""


@dataclass(frozen=True)
class Ranked:
    """A text's place in an order of relevance."""

    index: int
    """Which of the texts that were passed."""
    score: float
    truncated: bool
    """Whether it was cut."""


@dataclass(frozen=True)
class Label:
    """A label and how well it fits."""

    label: str
    score: float


@dataclass(frozen=True)
class Span:
    """A part of a text and its label."""

    label: str
    start: int
    """In characters of the text."""
    end: int
    """Exclusive."""
    text: str
    """What is between."""
    score: float
    """How probable the label is."""


@dataclass(frozen=True)
class Fill:
    """A candidate for a mask."""

    token: str
    token_id: int
    score: float
    """How probable it is."""


@dataclass(frozen=True)
class Answer:
    """A part of a context that may answer a question."""

    text: str
    """Empty is "no answer"."""
    start: int
    """In characters of the context."""
    end: int
    """Exclusive."""
    score: float
    """How probable it is."""


class Answers(list[Answer]):
    """The answers to one question, the best first."""

    def __init__(self, answers: Iterable[Answer], no_answer_score: float) -> None:
        super().__init__(answers)
        self.no_answer_score = no_answer_score
        """How probable it is that the context holds none."""


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text."""

    token_ids: list[int]
    """The tokens that have a probability: a decoder's without the first, a masked model's without special tokens."""
    logprobs: list[float]
    """Natural logarithms of probability, one a token."""
    total: float
    """Their sum."""
    perplexity: float
    """exp(-total / tokens)."""
