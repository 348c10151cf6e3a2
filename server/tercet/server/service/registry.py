"""The models that requests can address, and whether they can be asked what they are asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from tercet.server.control import State
from tercet.server.service.errors import (
    ENGINE_PAUSE,
    InvalidArgumentError,
    ModelNotFoundError,
    OverloadedError,
    UnavailableError,
    UnsupportedTaskError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tercet.server import wire
    from tercet.server.channel import Channel
    from tercet.server.config import Settings
    from tercet.server.engines import Engine
    from tercet.server.service.rpc import Exchange
    from tercet.server.text import TextModel

Task = Literal["embed", "generate", "chat", "rerank", "classify", "zero_shot", "tag", "fill_mask", "answer", "score"]
_LONGEST_NAME = 64  # characters of a name in an error
_SOONEST, _LATEST = 0.01, 5.0  # seconds after which a refused client is told to come again


class Target(NamedTuple):
    """A model that answers, and what a request of it needs."""

    model: ServedModel
    text: TextModel
    info: wire.ModelInfo
    channel: Channel


class ServedModel:
    """One model: its engine, and its text once that is read."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.name = engine.name
        self.engine = engine
        self.text: TextModel | None = None
        self._settings = settings
        own = next(model for model in settings.models if model.name == self.name)
        # what an administrator sets wins over what sentence-transformers was told
        self._length_is_set = own.max_length is not None
        self.max_rows = own.max_rows
        """Sequences of one batch."""

    @property
    def ready(self) -> bool:
        """Whether it answers requests."""
        return self.engine.state is State.READY and self.text is not None

    @property
    def was_ready(self) -> bool:
        """Whether it answers requests, or did: maybe before this front end was there."""
        return self.ready or (self.text is not None and self.engine.state in (State.RESTARTING, State.FAILED))

    def check_text(self) -> None:
        """Raises CheckpointTextError where its text is of another vocabulary than its engine's."""
        if self.text is not None and self.engine.info is not None:
            info = self.engine.info
            self.text.check_vocabulary(
                info.vocab_size, target_vocab_size=info.target_vocab_size, seq2seq=info.family == "seq2seq"
            )

    @property
    def tasks(self) -> list[Task] | None:
        """What it can be asked; None until that is known."""
        if self.engine.info is None or self.text is None:
            return None
        own, text = self.engine.info.tasks, self.text.labelled(self.engine.info.labels)
        fills = text.mask is not None
        generates, classifies = "generate" in own, "classify" in own
        able: dict[Task, bool] = {
            "embed": "embed" in own,
            "generate": generates,
            "chat": generates and text.chat_template is not None,
            "rerank": classifies and self.engine.info.labels == 1,
            "classify": classifies,
            "zero_shot": classifies and text.entailment is not None,
            "tag": "tag" in own,
            "fill_mask": "fill_mask" in own and fills,
            "answer": "answer" in own,
            "score": "score" in own and (generates or fills),
        }
        return [task for task, can in able.items() if can]

    @property
    def max_length(self) -> int:
        """The longest sequence in tokens, special tokens included; 0 until that is known."""
        info = self.engine.info
        return info.max_length if info is not None and "generate" in info.tasks else self.longest_read

    @property
    def longest_read(self) -> int:
        """The longest sequence that it embeds, scores or judges, in tokens; 0 until that is known."""
        if self.engine.info is None or self.text is None:
            return 0
        longest, own = self.engine.info.longest_read, self.text.embedding.max_length
        return longest if own is None or self._length_is_set else min(longest, own)

    def require_text(self) -> TextModel:
        """What is known of its text. Raises UnavailableError."""
        if self.text is None:
            raise UnavailableError(f"model {self.name!r} is loading", retry_after=ENGINE_PAUSE)
        return self.text

    def require(self, task: Task) -> Target:
        """Itself with what a request of that kind needs. Raises UnsupportedTaskError or UnavailableError."""
        text, info, channel = self.text, self.engine.info, self.engine.channel
        tasks = self.tasks
        if tasks is not None and task not in tasks:
            raise UnsupportedTaskError(f"model {self.name!r} can't {task}; it can {' and '.join(tasks)}")
        if self.engine.state is State.FAILED:
            raise UnavailableError(f"model {self.name!r} failed and stays down")
        if text is None or info is None or channel is None:
            state = self.engine.state.name.lower()
            raise UnavailableError(f"model {self.name!r} is {state}", retry_after=ENGINE_PAUSE)
        return Target(self, text.labelled(info.labels), info, channel)

    def can_wait(self, sequences: int, tokens: int) -> bool:
        """Whether its queue will take so many once enough are answered, before it is empty."""
        return sequences <= self._settings.max_queue and tokens <= self._settings.max_queue_tokens

    def has_room(self, channel: Channel, sequences: int, tokens: int) -> bool:
        """Whether its queue takes so many more. An empty queue takes anything that a call may hold."""
        pending = channel.pending
        return pending.sequences == 0 or (
            pending.sequences + sequences <= self._settings.max_queue
            and pending.tokens + tokens <= self._settings.max_queue_tokens
        )

    def admit(self, channel: Channel, sequences: int, tokens: int) -> None:
        """Raises OverloadedError where its queue does not take so many more."""
        if not self.has_room(channel, sequences, tokens):
            pending = channel.pending
            raise OverloadedError(
                f"the queue of model {self.name!r} is full: {pending.sequences} of {self._settings.max_queue} "
                f"sequences, {pending.tokens} of {self._settings.max_queue_tokens} tokens",
                retry_after=min(max(pending.drain_seconds, _SOONEST), _LATEST),
            )


class Registry:
    """Every model by name."""

    def __init__(self, engines: Iterable[Engine], settings: Settings) -> None:
        self.draining = False
        """Whether the server is shutting down."""
        self.models = {engine.name: ServedModel(engine, settings) for engine in engines}

    def get(self, name: str, field: str = "model") -> ServedModel:
        """The model of a name, which may be left empty where there is one alone.

        Raises ModelNotFoundError and InvalidArgumentError.
        """
        if name in self.models:
            return self.models[name]
        if name:
            raise ModelNotFoundError(f"no model {name[:_LONGEST_NAME]!r}; there are {self._listed()}", field=field)
        if len(self.models) > 1:
            raise InvalidArgumentError(field, f"must be one of {self._listed()}")
        return next(iter(self.models.values()))

    def find(self, name: str, task: Task) -> ServedModel:
        """The model of a name, which may be left empty where one alone can do the task.

        Raises ModelNotFoundError, UnsupportedTaskError, InvalidArgumentError and UnavailableError.
        """
        if name:
            return self.get(name)
        able = [model for model in self.models.values() if model.tasks is None or task in model.tasks]
        if not able:
            raise UnsupportedTaskError(f"no model can {task}; there are {self._listed()}")
        if len(able) == 1:
            return able[0]
        if any(model.tasks is None for model in able):
            raise UnavailableError("models are loading", retry_after=ENGINE_PAUSE)
        raise InvalidArgumentError("model", f"must be one of {', '.join(model.name for model in able)}")

    def target(self, name: str, task: Task, exchange: Exchange) -> Target:
        """The model that a request addresses, ready for the task; `exchange` learns its name. Raises as `find` does."""
        model = self.find(name, task)
        exchange.model = model.name
        return model.require(task)

    def _listed(self) -> str:
        return ", ".join(f"{m.name} ({', '.join(m.tasks)})" if m.tasks else m.name for m in self.models.values())
