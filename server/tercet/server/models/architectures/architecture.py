"""What an architecture file declares, and the limits of what a config may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from tercet.server.models.architectures.tables import affine
from tercet.server.models.checkpoint.config import Key, integer
from tercet.server.models.spec import HeadSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from tercet.server.models.checkpoint.config import Config, Table
    from tercet.server.models.checkpoint.weights import Into, WeightTable
    from tercet.server.models.spec import HeadActivation, TransformerSpec

# Lowest and highest sizes of any architecture: a config beyond them is damaged.
LAYERS = (1, 1_000)
WIDTH = (1, 131_072)
HEADS = (1, 1_024)
HEAD_DIM = (1, 256)
VOCABULARY = (1, 4_000_000)
LENGTH = (1, 4_194_304)
EPSILON = (0, 1)

# The sizes that configs have, under the names that most of them use.
SIZES = {
    "vocab_size": ("vocab_size", VOCABULARY),
    "hidden_size": ("hidden_size", WIDTH),
    "layers": ("num_hidden_layers", LAYERS),
    "heads": ("num_attention_heads", HEADS),
    "intermediate_size": ("intermediate_size", WIDTH),
}

# What configs call the activations.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def _count_labels(value: Any) -> int:
    if not isinstance(value, Mapping) or not value:
        raise ValueError
    return len(cast("Mapping[str, Any]", value))


# The number of labels of a head that classifies or tags.
LABELS: Table = {
    "num_labels": integer("labels", 1, 1_000_000, default=2),
    "id2label": Key("labels", "an object of the labels by number", _count_labels, default=2),
}


@dataclass(frozen=True, kw_only=True)
class GGUFTables:
    """How GGUF files name what config.json and safetensors name otherwise."""

    config: Table
    """The metadata keys."""
    implied: Mapping[str, Any]
    """Values that such files leave unsaid."""
    weights: WeightTable
    told: Mapping[str, str] = field(default_factory=dict[str, str])
    """Tensors that say something by being there, and the names of the values that are then true."""


@dataclass(frozen=True)
class Head:
    """The head of one of an architecture's classes."""

    spec: Callable[[Config], HeadSpec] | None
    """None of a base model."""
    weights: WeightTable = field(default_factory=dict[str, "Into | str | None"])
    """The names of its tensors, in full, and of those of the base model that it alone uses."""
    prefix: str | None = None
    """What stands before the names of its base model's tensors, if it is not the architecture's prefix."""
    encoder_only: bool = False
    """Whether a seq2seq model's class has its encoder alone."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The tables that turn a checkpoint of one `model_type` into a transformer."""

    name: str
    """`model_type` in config.json, `general.architecture` in GGUF."""
    heads: Mapping[str, Head]
    """What config.json may list under `architectures`; the first is meant where it lists nothing."""
    config: Table
    """The keys of config.json."""
    weights: WeightTable | Callable[[Config], WeightTable]
    """The tensors of the base model in a Hugging Face checkpoint, without the prefix."""
    spec: Callable[[Config], TransformerSpec]
    """All but the head."""
    prefix: str = ""
    """What a model with a head puts before the names of its base model's tensors, all of them or none."""
    gguf: GGUFTables | None = None
    """None where GGUF files are not supported."""
    float16: bool = True
    """Whether its activations stay within the range of float16."""


BASE = Head(None)


def sizes(**keys: str) -> Table:
    """The keys of the sizes; `keys` are those that a config calls otherwise than most."""
    return {keys.get(size, key): integer(size, *limits) for size, (key, limits) in SIZES.items()}


def gguf_sizes(name: str) -> Table:
    """The same in GGUF files of an architecture."""
    return sizes(
        vocab_size=f"{name}.vocab_size",
        hidden_size=f"{name}.embedding_length",
        layers=f"{name}.block_count",
        heads=f"{name}.attention.head_count",
        intermediate_size=f"{name}.feed_forward_length",
    )


def language_model(name: str = "lm_head", *, bias: bool = False) -> Head:
    """A map to the vocabulary called `name`, tied to the word embedding where the config says `tied`."""
    return Head(
        lambda config: HeadSpec(task="generate", outputs=config["vocab_size"], tied=config["tied"], bias=bias),
        affine({name: "head.output"}) if bias else {f"{name}.weight": "head.output.weight"},
    )


def classifier(name: str, *, reads: Literal["first", "mean", "last"], bias: bool = True) -> Head:
    """One linear map of a sequence's hidden state to the labels."""
    return Head(
        lambda config: HeadSpec(task="classify", outputs=config["labels"], reads=reads, bias=bias),
        affine({name: "head.output"}) if bias else {f"{name}.weight": "head.output.weight"},
    )


def dense_classifier(
    dense: str, output: str, *, reads: Literal["first", "last"], activation: HeadActivation = "tanh"
) -> Head:
    """A dense map of a sequence's hidden state, as wide as that, an activation, and a map to the labels."""
    return Head(
        lambda config: HeadSpec(
            task="classify",
            outputs=config["labels"],
            reads=reads,
            dense=config["hidden_size"],
            activation=activation,
            bias=True,
        ),
        affine({dense: "head.dense", output: "head.output"}),
    )


def tagger(name: str = "classifier") -> Head:
    """One linear map of every token's hidden state to the labels."""
    return Head(lambda config: HeadSpec(task="tag", outputs=config["labels"], bias=True), affine({name: "head.output"}))


def answerer(name: str = "qa_outputs") -> Head:
    """One linear map of every token's hidden state to the scores of an answer that starts and that ends there."""
    return Head(lambda config: HeadSpec(task="answer", outputs=2, bias=True), affine({name: "head.output"}))


def head_dim(config: Config) -> int:
    """The size of a head: as configured, else an equal share of the hidden size."""
    return config["head_dim"] or config.quotient("hidden_size", "heads")


def kv_heads(config: Config) -> int:
    """How many heads have keys of their own: as configured, else all."""
    if config["kv_heads"] is None:
        return config["heads"]
    config.quotient("heads", "kv_heads")
    return config["kv_heads"]
