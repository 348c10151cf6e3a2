"""Python values to the messages of the protocol, with errors that name the field."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import Any, TypedDict, TypeVar

from google.protobuf.message import Message

from tercet.client.errors import FieldViolation, InvalidArgument
from tercet.v1.generation_pb2 import Chat, GenerateRequest, SamplingParameters
from tercet.v1.types_pb2 import TextInput, TokenIds

Prompt = str | Iterable[int]
"""Text, or token ids (a list, a numpy array ...) to which nothing is added."""
ChatMessage = Mapping[str, str]
"""{"role": "user", "content": "..."}"""

# What goes into one request: well under the server's limits, and enough for it to sort by length.
BATCH_ITEMS = 256
BATCH_BYTES = 1 << 20

M = TypeVar("M", bound=Message)


class Sampling(TypedDict, total=False):
    """How tokens are chosen. What is left out, or None, is the checkpoint's own, else the neutral value named."""

    max_new_tokens: int | None
    """The most tokens to generate for each output; else the room left."""
    min_new_tokens: int | None
    """No end of sequence before this many tokens; 0."""
    temperature: float | None
    """Divides the logits: 0, or 0.0001 to 100; 0 is greedy.
    Neutral: 0 where the checkpoint does not ask for sampling, else 1."""
    top_k: int | None
    """Keeps the k likeliest tokens; 0 is off."""
    top_p: float | None
    """Keeps the likeliest tokens that together reach this probability; 1 is off."""
    min_p: float | None
    """Keeps tokens at least this fraction as likely as the likeliest; 0 is off."""
    repetition_penalty: float | None
    """Makes tokens that were seen less likely: 0.01 to 100; 1 is off."""
    seed: int | None
    """Makes draws repeatable; else the server chooses and reports it."""
    n: int | None
    """How many outputs; 1."""
    stop: str | Iterable[str] | None
    """Generation ends before any of these strings."""
    stop_token_ids: Iterable[int] | None
    """Generation ends at any of these tokens, beside the checkpoint's end-of-sequence tokens."""
    ignore_eos: bool | None
    """Whether end-of-sequence tokens are ignored, for benchmarks; False."""
    skip_special_tokens: bool | None
    """Whether special tokens are left out of text; True."""


@contextmanager
def naming(field: str) -> Generator[None]:
    """Names the field in what protobuf says inside: InvalidArgument of a wrong value, TypeError of a wrong type."""
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"{field}: {error}", violations=[FieldViolation(field, str(error))]) from error
    except TypeError as error:
        raise TypeError(f"{field}: {error}") from error


def text_input(value: Prompt, field: str) -> TextInput:
    """Text or token ids as the protocol has them."""
    if not isinstance(value, str):
        return TextInput(token_ids=token_ids(value, field))
    with naming(field):
        return TextInput(text=value)


def text(value: object, field: str) -> TextInput:
    """Text alone, where token ids have no place."""
    if not isinstance(value, str):
        raise TypeError(f"{field}: text is expected, got {type(value).__name__}")
    return text_input(value, field)


def token_ids(values: Any, field: str) -> TokenIds:
    """Token ids, from any iterable of integers."""
    if isinstance(values, str | bytes | Mapping):
        raise TypeError(f"{field}: token ids are expected, got {type(values).__name__}")
    with naming(field):
        return TokenIds(values=[*values])


def listed(value: Any, field: str, *, empty_is_one: bool = False) -> tuple[list[Any], bool]:
    """One sequence (text or token ids), or a list of them, as a list; and whether it was one.

    An empty list is one sequence without tokens where `empty_is_one`; else it has nothing to answer and InvalidArgument
    is raised.
    """
    if isinstance(value, str):
        return [value], True
    if isinstance(value, bytes | Mapping):
        raise TypeError(f"{field}: text, token ids or a list of them is expected, got {type(value).__name__}")
    items = list(value)
    if not items and not empty_is_one:
        raise InvalidArgument(f"{field}: the list is empty", violations=[FieldViolation(field, "the list is empty")])
    one = not items or isinstance(items[0], Integral)
    return ([items], True) if one else (items, False)


def batches(items: list[M]) -> Iterator[list[M]]:
    """Cuts `items`, in order, into lists of at most BATCH_ITEMS items and BATCH_BYTES bytes, or one larger item."""
    batch: list[M] = []
    size = 0
    for item in items:
        item_size = item.ByteSize()
        if batch and (len(batch) == BATCH_ITEMS or size + item_size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item_size
    yield batch


def chat(messages: Iterable[ChatMessage]) -> Chat:
    """A conversation, oldest message first."""
    if isinstance(messages, str | bytes | Mapping):
        raise TypeError(f"messages: a list of messages is expected, got {type(messages).__name__}")
    conversation = Chat()
    for index, message in enumerate(messages):
        with naming(f"chat.messages[{index}]"):
            conversation.messages.add(**message)
    return conversation


def generate(
    prompt: TextInput | Chat, model: str | None, truncate: bool | None, sampling: Mapping[str, Any]
) -> GenerateRequest:
    """What to continue, and how."""
    request = GenerateRequest(model=model, truncate=truncate, sampling=sampling_parameters(sampling))
    if isinstance(prompt, Chat):
        request.chat.CopyFrom(prompt)
    else:
        request.input.CopyFrom(prompt)
    return request


def sampling_parameters(values: Mapping[str, Any]) -> SamplingParameters:
    """The values that are set. Raises TypeError for a name that is none of `Sampling`'s."""
    parameters = SamplingParameters()
    for name, value in values.items():
        field = SamplingParameters.DESCRIPTOR.fields_by_name.get(name)
        if field is None:
            raise TypeError(f"unexpected keyword argument {name!r}; there are {', '.join(Sampling.__annotations__)}")
        if value is None:
            continue
        with naming(f"sampling.{name}"):
            if field.message_type is None:
                setattr(parameters, name, value)
            else:
                wrapped = getattr(parameters, name)
                wrapped.SetInParent()
                wrapped.values.extend([value] if isinstance(value, str) else value)
    return parameters
