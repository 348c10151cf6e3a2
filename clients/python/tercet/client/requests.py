"""Python values to the messages of the protocol, with errors that name the field."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from operator import methodcaller
from typing import Any, Literal, TypedDict, TypeVar

from google.protobuf.message import Message

from tercet.client.errors import FieldViolation, InvalidArgument
from tercet.v1.generation_pb2 import Chat, EarlyStopping, GenerateRequest, SamplingParameters
from tercet.v1.types_pb2 import TextInput, TokenBatch, TokenIds

Prompt = str | Iterable[int]
"""Text, or token ids (a list, a numpy array ...) to which nothing is added."""
ChatMessage = Mapping[str, str]
"""{"role": "user", "content": "..."}"""

# What goes into one request: well under the server's limits, and enough for it to sort by length.
BATCH_ITEMS = 256
BATCH_BYTES = 1 << 20
# What a request for a generation says beside its prompt and how tokens are chosen.
GENERATE_OPTIONS = ("model", "truncate", "task", "source_lang", "target_lang", "cache_salt")

M = TypeVar("M", bound=Message)
T = TypeVar("T")


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
    """How many outputs, with beams the best n of them; 1."""
    stop: str | Iterable[str] | None
    """Generation ends before any of these strings."""
    stop_token_ids: Iterable[int] | None
    """Generation ends at any of these tokens, beside the checkpoint's end-of-sequence tokens."""
    ignore_eos: bool | None
    """Whether end-of-sequence tokens are ignored, for benchmarks; False."""
    skip_special_tokens: bool | None
    """Whether special tokens are left out of text; True."""
    typical_p: float | None
    """Keeps the tokens nearest to the expected surprise that together reach this probability; 1 is off."""
    presence_penalty: float | None
    """Subtracted from the logit of every token that the output holds: -2 to 2; 0 is off."""
    frequency_penalty: float | None
    """Subtracted from the logit of a token for each time that the output holds it: -2 to 2; 0 is off."""
    logit_bias: Mapping[int, float] | None
    """Token ids and what is added to their logits: -100 to 100."""
    no_repeat_ngram_size: int | None
    """No sequence of so many tokens occurs twice; 0 is off."""
    bad_words: str | Iterable[str] | None
    """Texts that are not generated."""
    num_beams: int | None
    """Beams of beam search; 1 is none."""
    length_penalty: float | None
    """The power of its length that divides the score of a finished beam; 1."""
    early_stopping: bool | Literal["never"] | None
    """When beam search ends: True once enough beams are finished, False once a better one is unlikely, "never" once it
    is impossible; False."""
    logprobs: bool | None
    """Whether the log probability of each token is reported; False. Not with beams."""
    top_logprobs: int | None
    """How many of the likeliest tokens are reported beside it, at most 20; 0."""
    echo: bool | None
    """Whether outputs begin with the prompt, whose log probabilities are reported too; False. Decoders alone."""
    forced_bos_token_id: int | None
    """The first token to generate."""
    forced_eos_token_id: int | None
    """The last token to generate where an output reaches max_new_tokens."""


@contextmanager
def naming(field: str) -> Generator[None]:
    """Names the field in what is raised inside: InvalidArgument of a wrong value, TypeError of a wrong type."""
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
    return TokenIds(packed=packed_ids(values, field))


def packed_ids(values: Any, field: str) -> bytes:
    """Token ids as little-endian integers of 4 bytes each."""
    if isinstance(values, str | bytes | bytearray | Mapping):
        raise TypeError(f"{field}: token ids are expected, got {type(values).__name__}")
    with naming(field):
        try:
            ids = array("I", values)
        except OverflowError:
            raise ValueError(f"token ids must lie in 0..{2**32 - 1}") from None
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()


def token_batch(packed: list[bytes]) -> TokenBatch:
    """Packed token ids of several inputs as one."""
    return TokenBatch(packed=b"".join(packed), lengths=[len(ids) // 4 for ids in packed])


def listed(value: Any, field: str, *, empty_is_one: bool = False) -> tuple[list[Any], bool]:
    """One sequence (text or token ids), or a list of them, as a list; and whether it was one.

    An empty list is one sequence without tokens where `empty_is_one`; else it has nothing to answer and InvalidArgument
    is raised.
    """
    if isinstance(value, str):
        return [value], True
    if isinstance(value, bytes | bytearray | Mapping):
        raise TypeError(f"{field}: text, token ids or a list of them is expected, got {type(value).__name__}")
    items = list(value)
    if not items and not empty_is_one:
        raise InvalidArgument(f"{field}: the list is empty", violations=[FieldViolation(field, "the list is empty")])
    one = not items or isinstance(items[0], Integral)
    return ([items], True) if one else (items, False)


def batches(items: list[T], size_of: Callable[[T], int] = methodcaller("ByteSize")) -> Iterator[list[T]]:
    """Cuts `items`, in order, into lists of at most BATCH_ITEMS items and BATCH_BYTES bytes, or one larger item."""
    batch: list[T] = []
    size = 0
    for item in items:
        item_size = size_of(item)
        if batch and (len(batch) == BATCH_ITEMS or size + item_size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item_size
    yield batch


def enum(enum: Any, prefix: str, word: str | None, field: str) -> Any:
    """The value that a word of the SDK stands for; None stays None."""
    with naming(field):
        return None if word is None else enum.Value(f"{prefix}{word.upper()}")


def build(kind: type[M], **values: Any) -> M:
    """A message of these values; None is unset. Raises TypeError for a name that is no field."""
    message = kind()
    for name, value in values.items():
        if name not in kind.DESCRIPTOR.fields_by_name:
            raise TypeError(f"unexpected keyword argument {name!r}")
        with naming(name):
            message.MergeFrom(kind(**{name: value}))
    return message


def filled(options: M, **items: list[Any]) -> M:
    """A request with these options and items."""
    request = type(options)()
    request.CopyFrom(options)
    for field, values in items.items():
        getattr(request, field).extend(values)
    return request


def chat(messages: Iterable[ChatMessage]) -> Chat:
    """A conversation, oldest message first."""
    if isinstance(messages, str | bytes | Mapping):
        raise TypeError(f"messages: a list of messages is expected, got {type(messages).__name__}")
    conversation = Chat()
    for index, message in enumerate(messages):
        with naming(f"chat.messages[{index}]"):
            conversation.messages.add(**message)
    return conversation


def prompt(value: Any) -> TextInput | Chat:
    """Text or token ids, or a conversation: a list of mappings."""
    values: Any = value if isinstance(value, str | bytes | Mapping) else list(value)
    conversation = isinstance(values, list) and values and isinstance(values[0], Mapping)
    return chat(values) if conversation else text_input(values, "input")


def generate(prompt: TextInput | Chat, sampling: Mapping[str, Any], **options: Any) -> GenerateRequest:
    """What to continue, and how; `options` are other fields of the request."""
    request = GenerateRequest(sampling=sampling_parameters(sampling), **options)
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
            if field.enum_type is not None:
                setattr(parameters, name, EarlyStopping.Value(f"EARLY_STOPPING_{str(value).upper()}"))
            elif field.message_type is None:
                setattr(parameters, name, value)
            elif isinstance(value, Mapping):
                getattr(parameters, name).update(value)
            else:
                wrapped = getattr(parameters, name)
                wrapped.SetInParent()
                wrapped.values.extend([value] if isinstance(value, str) else value)
    return parameters
