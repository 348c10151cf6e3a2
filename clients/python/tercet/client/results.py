"""What the calls return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Family",
    "FinishReason",
    "Generation",
    "HealthStatus",
    "ModelInfo",
    "ModelState",
    "Output",
    "Piece",
    "Task",
    "Tokenized",
    "Usage",
]

# Beside these a newer server may say what this SDK does not know: "unspecified".
Family = Literal["encoder", "decoder", "seq2seq", "unspecified"]
Task = Literal["embed", "generate", "chat", "unspecified"]
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
    """What it computes in: "float32", "bfloat16", "float16"."""
    device: str
    """Where it computes: "cpu", "cuda:0"."""
    parameters: int
    """How many weights it has."""


@dataclass(frozen=True)
class Usage:
    """What a call consumed."""

    prompt_tokens: int
    """Tokens the model read, after truncation, special tokens included."""
    generated_tokens: int
    """Tokens the model generated, over all outputs, end-of-sequence tokens included."""


@dataclass(frozen=True)
class Output:
    """One of the n outputs of a call."""

    index: int
    text: str
    """Without the prompt and without the stop string."""
    token_ids: list[int]
    """Every generated token, the one that ended it included."""
    finish_reason: FinishReason | None
    """Why it ended: "eos" by the model, "stop" by a stop string or token, "length" by a limit."""


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


@dataclass(frozen=True)
class Tokenized:
    """A text's tokens."""

    token_ids: list[int]
    tokens: list[str]
    """As the vocabulary spells them."""
    offsets: list[tuple[int, int]]
    """Start and end of each token in the text, end exclusive, in characters; (0, 0) for special tokens."""
