"""Servers with fake engines, and stubs to call them with."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grpc
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from support.server import RunningServer, running_server
from tercet.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tercet.v1.generation_pb2_grpc import GenerationServiceStub
from tercet.v1.models_pb2_grpc import ModelServiceStub
from tercet.v1.scoring_pb2_grpc import ScoringServiceStub
from tercet.v1.text_pb2_grpc import TextServiceStub
from tercet.v1.understanding_pb2_grpc import UnderstandingServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

FAKE_LAUNCHER = (sys.executable, str(Path(__file__).with_name("fake_server.py")))
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
MASK_ID = 59
WORDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, **{f"w{i}": i for i in range(4, MASK_ID)}}


class Stubs(NamedTuple):
    """One channel to a server."""

    channel: grpc.Channel
    models: ModelServiceStub
    embedding: EmbeddingServiceStub
    generation: GenerationServiceStub
    text: TextServiceStub
    understanding: UnderstandingServiceStub
    scoring: ScoringServiceStub


@contextmanager
def _connect(server: RunningServer, *options: tuple[str, int]) -> Iterator[Stubs]:
    """Stubs for a server."""
    with grpc.insecure_channel(server.address, options=options) as channel:
        stubs = (
            ModelServiceStub,
            EmbeddingServiceStub,
            GenerationServiceStub,
            TextServiceStub,
            UnderstandingServiceStub,
            ScoringServiceStub,
        )
        yield Stubs(channel, *(stub(channel) for stub in stubs))


def fake_checkpoint(
    folder: Path, model_type: str, *, chat: bool = False, config: dict[str, object] | None = None, **fake: object
) -> Path:
    """A checkpoint for the fake engine: words w4 to w59, each the token of its number; BERT has [MASK] for w59."""
    last = "[MASK]" if model_type == "bert" else f"w{MASK_ID}"
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel(WORDS | {last: MASK_ID}, unk_token="[UNK]"))  # noqa: S106  a word, not a secret
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"] + [last] * (model_type == "bert"))
    if model_type == "bert":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    own = {"model_type": model_type, "eos_token_id": 40, "decoder_start_token_id": 0, "fake": fake}
    own["is_encoder_decoder"] = model_type == "t5"
    (folder / "config.json").write_text(json.dumps(own | (config or {})))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE} if chat else {}))
    return folder


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    """Makes a checkpoint for the fake engine: `make_checkpoint(folder, model_type, *, chat=False, **fake)`."""
    return fake_checkpoint


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint of each family: "encoder", "decoder" (with a chat template), "seq2seq"."""
    folder = tmp_path_factory.mktemp("fake")
    return {
        "encoder": fake_checkpoint(folder / "encoder", "bert"),
        "decoder": fake_checkpoint(folder / "decoder", "gpt2", chat=True),
        "seq2seq": fake_checkpoint(folder / "seq2seq", "t5"),
    }


def labels(*names: str) -> dict[str, object]:
    """What config.json says of a head's labels."""
    return {"id2label": {str(i): name for i, name in enumerate(names)}}


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint for each head."""
    folder = tmp_path_factory.mktemp("heads")

    def head(name: str, model_type: str, *tasks: str, config: dict[str, object] | None = None, count: int = 0) -> Path:
        return fake_checkpoint(folder / name, model_type, config=config, tasks=["embed", *tasks], labels=count)

    nli, tags = labels("CONTRADICTION", "neutral", "entailment"), labels("O", "B-X", "I-X", "Y")
    mixed = {"problem_type": "multi_label_classification"}
    translate = {"task_specific_params": {"shout": {"prefix": "w9 w8 ", "max_length": 4, "num_beams": 2}}}
    return {
        "nli": head("nli", "bert", "classify", config=nli, count=3),
        "mixed": head("mixed", "bert", "classify", config=mixed, count=2),
        "reranker": head("reranker", "bert", "classify", config=labels("relevance"), count=1),
        "pairs": head("pairs", "t5", "classify", count=2),
        "tagger": head("tagger", "bert", "tag", config=tags, count=4),
        "masked": head("masked", "bert", "fill_mask", "score"),
        "answerer": head("answerer", "bert", "answer", count=2),
        "decoder": head("decoder", "gpt2", "generate", "score", config={"pad_token_id": 7}),
        "seq2seq": head("seq2seq", "t5", "generate", "score", config=translate),
    }


@pytest.fixture
def slow_decoder(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> Path:
    """A decoder with 50 ms a step."""
    return make_checkpoint(tmp_path / "slow", "gpt2", step=0.05)


@pytest.fixture(scope="session")
def start() -> Callable[..., AbstractContextManager[RunningServer]]:
    """Starts a server with fake engines: `start({name: checkpoint}, *flags)`."""

    def run(models: dict[str, Path], *flags: str, **options: object) -> AbstractContextManager[RunningServer]:
        return running_server(models, "--lame-duck", "0", *flags, launcher=FAKE_LAUNCHER, timeout=30, **options)

    return run


@pytest.fixture(scope="session")
def fake_launcher() -> tuple[str, ...]:
    """The command of a server with fake engines."""
    return FAKE_LAUNCHER


@pytest.fixture(scope="module")
def server(checkpoints: dict[str, Path], start: Callable[..., AbstractContextManager[RunningServer]]):
    """A server with a model of each family."""
    with start(checkpoints) as running:
        yield running


@pytest.fixture(scope="session")
def connect() -> Callable[..., AbstractContextManager[Stubs]]:
    """Stubs for a server: `connect(server, *channel_options)`."""
    return _connect


@pytest.fixture(scope="module")
def able(heads: dict[str, Path], start: Callable[..., AbstractContextManager[RunningServer]]) -> Iterator[Stubs]:
    """Stubs for a server with a model for each head."""
    with start(heads) as running, _connect(running) as connected:
        yield connected


@pytest.fixture
def stubs(server: RunningServer) -> Iterator[Stubs]:
    """Stubs for the server of the module."""
    with _connect(server) as connected:
        yield connected
