"""Every call of the SDK short of the calling: what is sent, to which method, and how the answer reads.

`Client` and `AsyncClient` differ in how they wait, and in nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest

from tercet.client import requests, responses
from tercet.client.errors import Internal, InvalidArgument, Unavailable
from tercet.client.statuses import from_status
from tercet.v1.embedding_pb2 import EmbedRequest, EmbedStreamResponse, Pooling
from tercet.v1.models_pb2 import ListModelsRequest
from tercet.v1.text_pb2 import DetokenizeRequest, TokenizeRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tercet.client.errors import TercetError
    from tercet.client.requests import ChatMessage, Prompt
    from tercet.client.results import Generation, HealthStatus, ModelInfo, Piece
    from tercet.v1.generation_pb2 import GenerateRequest

R = TypeVar("R")
Errors = Literal["raise", "return"]
RESUMES = 3
PoolingName = Literal["mean", "cls", "last", "max", "none"]


@dataclass(frozen=True)
class Call(Generic[R]):
    """One request with one answer."""

    method: Callable[[Any], Any]
    """The method, of a channel's `Stubs`."""
    request: Any
    read: Callable[[Any], R]
    """The answer, as the caller sees it."""
    subject: str = "the request"
    """What it is about, for statuses that come without a message."""


class ListCall:
    """A call on a list: cut into requests that the server takes, and their results in the order of the list."""

    def __init__(
        self,
        method: str,
        batches: list[list[Any]],
        request: Callable[[list[Any]], Any],
        read: Callable[[Any], list[Any]],
        *,
        single: bool,
        errors: Errors = "raise",
        stream: str | None = None,
        join: Callable[[list[Any]], Any] = list,
    ) -> None:
        """Makes a request of each batch.

        Args:
            method: for one request.
            batches: the items; one item alone where `single`.
            request: the message for one batch.
            read: the results in an answer, a google.rpc.Status for an item that was refused.
            single: whether one item was passed, and no list.
            errors: whether an item's error is raised or returned.
            stream: the method for several requests, where there is one.
            join: what makes the list of results the caller's.
        """
        if errors not in ("raise", "return"):
            raise ValueError(f'errors must be "raise" or "return", got {errors!r}')
        self.streamed = stream is not None and len(batches) > 1
        self.method: Callable[[Any], Any] = attrgetter(stream if stream and self.streamed else method)
        self._requests = [request(batch) for batch in batches]
        self._sizes = [len(batch) for batch in batches]
        self._answered = 0
        self._failures = 0
        self._read = read
        self._single = single
        self._raises = errors == "raise"
        self._join = join
        self._results: list[Any] = []

    @property
    def pending(self) -> list[Any]:
        """The requests that are not answered yet."""
        return self._requests[self._answered :]

    def add(self, response: Any) -> None:
        """Takes the answer to the next request. Raises the error of an item, unless errors are to be returned."""
        start, size = len(self._results), self._sizes[self._answered]
        if isinstance(response, EmbedStreamResponse):
            if response.HasField("error"):
                raise from_status(response.error, offset=start)
            response = response.response
        items = self._read(response)
        if len(items) != size:
            raise Internal(f"the server answered {len(items)} of {size} items")
        self._results += [
            self._refused(item, start, index) if isinstance(item, Status) else item
            for index, item in enumerate(items, start)
        ]
        self._answered += 1
        self._failures = 0

    def pause(self, error: TercetError, left: float | None) -> float:
        """Seconds until what is pending may be sent again, of those that are left.

        gRPC itself repeats calls, but no stream that has brought answers. Such a one is taken up again as long as the
        server says when, and RESUMES times in a row where it has no say. Raises `error` otherwise, and where too little
        time is left.
        """
        seconds = error.retry_after
        if seconds is None and isinstance(error, Unavailable) and self._failures < RESUMES:
            self._failures += 1
            seconds = 0.1 * 2**self._failures
        if not self.streamed or seconds is None or (left is not None and seconds >= left):
            raise error
        return seconds

    def result(self) -> Any:
        """One result where one item was passed, else all of them."""
        return self._results[0] if self._single else self._join(self._results)

    def _refused(self, status: Status, offset: int, index: int) -> Exception:
        error = from_status(status, offset=offset)
        error.index = None if self._single else index
        if self._raises:
            raise error
        return error


def models() -> Call[list[ModelInfo]]:
    """Every model of the server."""
    return Call(
        attrgetter("models.List"),
        ListModelsRequest(),
        lambda response: [responses.model_info(model) for model in response.models],
    )


def health(model: str | None) -> Call[HealthStatus]:
    """The server's health, or one model's."""
    return Call(
        attrgetter("health.Check"),
        HealthCheckRequest(service="" if model is None else f"model/{model}"),
        responses.health,
        "the server's health" if model is None else f"model {model!r}",
    )


def embed(
    inputs: Prompt | Iterable[Prompt],
    *,
    pooling: PoolingName | None,
    errors: Errors,
    **options: Any,
) -> ListCall:
    """Vectors of text or token ids; `options` are other fields of the request."""
    values, single = requests.listed(inputs, "inputs")
    kind = requests.enum(Pooling, "POOLING_", pooling, "pooling")
    request = requests.build(EmbedRequest, pooling=kind, **options)
    rows = pooling != "none"
    batches, fill = (
        _texts(request, values) if any(isinstance(value, str) for value in values) else _ids(request, values)
    )
    return ListCall(
        "embedding.Embed",
        batches,
        fill,
        responses.embeddings if rows else responses.features,
        single=single,
        errors=errors,
        stream="embedding.EmbedStream",
        join=np.stack if rows and errors == "raise" else list,
    )


def _texts(request: EmbedRequest, values: list[Prompt]) -> tuple[list[list[Any]], Callable[[list[Any]], EmbedRequest]]:
    """Inputs in batches, and what makes a request of one."""
    items = [requests.text_input(value, f"inputs[{index}]") for index, value in enumerate(values)]
    return [*requests.batches(items)], lambda batch: requests.filled(request, inputs=batch)


def _ids(request: EmbedRequest, values: list[Prompt]) -> tuple[list[list[Any]], Callable[[list[Any]], EmbedRequest]]:
    """The same where all are token ids, which need no message each."""
    packed = [requests.packed_ids(value, f"inputs[{index}]") for index, value in enumerate(values)]

    def fill(batch: list[bytes]) -> EmbedRequest:
        filled = requests.filled(request)
        filled.token_batch.CopyFrom(requests.token_batch(batch))
        return filled

    return [*requests.batches(packed, len)], fill


def tokenize(texts: str | Iterable[str], *, model: str | None, add_special_tokens: bool | None) -> ListCall:
    """Tokens of text."""
    values, single = requests.listed(texts, "texts")
    items = [requests.text(value, f"texts[{index}]") for index, value in enumerate(values)]
    return ListCall(
        "text.Tokenize",
        [*requests.batches(items)],
        lambda batch: TokenizeRequest(
            model=model, texts=[item.text for item in batch], add_special_tokens=add_special_tokens
        ),
        responses.tokenized,
        single=single,
    )


def detokenize(
    token_ids: Iterable[int] | Iterable[Iterable[int]],
    *,
    model: str | None,
    skip_special_tokens: bool | None,
) -> ListCall:
    """Text of tokens."""
    values, single = requests.listed(token_ids, "sequences", empty_is_one=True)
    items = [requests.token_ids(value, f"sequences[{index}]") for index, value in enumerate(values)]
    return ListCall(
        "text.Detokenize",
        [*requests.batches(items)],
        lambda batch: DetokenizeRequest(model=model, sequences=batch, skip_special_tokens=skip_special_tokens),
        responses.detokenized,
        single=single,
    )


def generate(prompt: Prompt, *, sampling: Mapping[str, Any], **options: Any) -> Call[Generation]:
    """A continuation of text or token ids; `options` are other fields of the request."""
    request = requests.generate(requests.text_input(prompt, "input"), sampling, **options)
    return Call(attrgetter("generation.Generate"), request, responses.generation)


def chat(messages: Iterable[ChatMessage], *, sampling: Mapping[str, Any], **options: Any) -> Call[Generation]:
    """The next message of a conversation; `options` as in `generate`."""
    request = requests.generate(requests.chat(messages), sampling, **options)
    return Call(attrgetter("generation.Generate"), request, responses.generation)


def stream(prompt: Prompt | Iterable[ChatMessage], *, sampling: Mapping[str, Any], **options: Any) -> Call[Piece]:
    """Either, piece by piece: `read` reads one piece."""
    request = requests.generate(requests.prompt(prompt), sampling, **options)
    return Call(attrgetter("generation.GenerateStream"), request, responses.piece)


def many(asked: Any, options: Mapping[str, Any]) -> Iterator[tuple[Any, GenerateRequest | TercetError]]:
    """The requests of many generations with the caller's keys, or why one can't be sent.

    `asked`: prompts or conversations, or mappings with a "prompt" and options of its own, which come before `options`:
    in a mapping by their keys, else numbered.
    """
    if isinstance(asked, str | bytes):
        raise TypeError(f"requests: a list of prompts is expected, got {type(asked).__name__}")
    for key, item in asked.items() if isinstance(asked, Mapping) else enumerate(asked):
        own = {**options, **(item if isinstance(item, Mapping) else {"prompt": item})}
        if "prompt" not in own:
            raise TypeError(f"requests[{key!r}]: has no prompt")
        fields = {name: own.pop(name) for name in requests.GENERATE_OPTIONS if name in own}
        try:
            yield key, requests.generate(requests.prompt(own.pop("prompt")), own, **fields)
        except InvalidArgument as error:
            yield key, error
