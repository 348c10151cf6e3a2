"""The client that waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from tercet.client import calls
from tercet.client.connections import CONNECTIONS
from tercet.client.many import Many
from tercet.client.streams import Stream
from tercet.client.tasks import Tasks
from tercet.client.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self, Unpack

    import grpc
    import numpy as np
    from numpy.typing import NDArray

    from tercet.client.calls import Errors, PoolingName
    from tercet.client.errors import TercetError
    from tercet.client.requests import ChatMessage, Prompt, Sampling
    from tercet.client.results import Generation, HealthStatus, ModelInfo, Tokenized


class Client(Many, Tasks):
    """Talks to a Tercet server.

    Threads may share it. Every call takes `timeout` in seconds (None is the client's, infinity is none) and raises a
    TercetError; one that finds the server full or away is made again, within its timeout. `model` may be left out
    where one model alone can do the task.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        timeout: float | None = 60,
        connections: int = CONNECTIONS,
    ) -> None:
        """Connects when first used.

        Args:
            target: "host:port" or another gRPC target. "dns:///host:port" is balanced over every address of the host.
            token: sent as a bearer token; needs `credentials` unless the target is local.
            credentials: as from grpc.ssl_channel_credentials(); None is unencrypted.
            timeout: seconds for each call that names none; None is without end.
            connections: the most that are opened, as many calls at once need them; the front ends of a server share
                its connections among them.
        """
        self._transport = Transport(target, token, credentials, timeout, connections)

    def close(self) -> None:
        """Cancels what still runs and hangs up."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_ready(self, model: str | None = None, *, timeout: float | None = None) -> None:
        """Returns once the server, or one model of it, serves.

        Raises DeadlineExceeded, saying what it waited for, and NotFound where no model has this name.
        """
        self._transport.wait_ready(model, self._transport.deadline(timeout))

    def health(self, model: str | None = None, *, timeout: float | None = None) -> HealthStatus:
        """Whether the server, or one model of it, serves. Raises NotFound where no model has this name."""
        return self._transport.one(calls.health(model), self._transport.deadline(timeout))

    def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """Every model of the server, sorted by name, whatever its state."""
        return self._transport.one(calls.models(), self._transport.deadline(timeout))

    @overload
    def embed(
        self,
        inputs: Prompt | Iterable[Prompt],
        *,
        model: str | None = None,
        pooling: PoolingName | None = None,
        normalize: bool | None = None,
        truncate: bool | None = None,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        errors: Literal["raise"] = "raise",
        timeout: float | None = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def embed(
        self,
        inputs: Iterable[Prompt],
        *,
        model: str | None = None,
        pooling: PoolingName | None = None,
        normalize: bool | None = None,
        truncate: bool | None = None,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        errors: Literal["return"],
        timeout: float | None = None,
    ) -> list[NDArray[np.float32] | TercetError]: ...
    def embed(
        self,
        inputs: Prompt | Iterable[Prompt],
        *,
        model: str | None = None,
        pooling: PoolingName | None = None,
        normalize: bool | None = None,
        truncate: bool | None = None,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        errors: Errors = "raise",
        timeout: float | None = None,
    ) -> Any:
        """Vectors of text.

        Args:
            inputs: a text, or the token ids of one; or a list of either. A long list goes in several requests on one
                stream, so its length has no limit.
            model: may be left out where one model alone can embed.
            pooling: how the vectors of tokens become one; None is the checkpoint's own.
            normalize: whether vectors are scaled to length 1; None is the checkpoint's own.
            truncate: whether an input that is too long is cut; else it is refused.
            dimensions: keeps the first so many components, for checkpoints trained to bear it (Matryoshka).
            prompt_name: the checkpoint's prompt of this name is put before every text; None is its default, "" is none.
            errors: "raise" raises the error of the first input of a list that is refused, with its position in
                `index`; "return" puts each error where the vector would be. What concerns the whole call is raised.
            timeout: seconds for the whole list.

        Returns:
            float32 [embedding size] for one input, [n, embedding size] for a list of n; with errors="return" a list
            of vectors and errors. With pooling="none" [tokens, embedding size] for each input, in a list for a list.
        """
        call = calls.embed(
            inputs,
            model=model,
            pooling=pooling,
            normalize=normalize,
            truncate=truncate,
            dimensions=dimensions,
            prompt_name=prompt_name,
            errors=errors,
        )
        return self._transport.many(call, self._transport.deadline(timeout))

    def generate(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        truncate: bool | None = None,
        task: str | None = None,
        source_lang: str | None = None,
        target_lang: str | None = None,
        cache_salt: str | None = None,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """Continues a prompt (decoder) or transforms a source (seq2seq).

        Args:
            prompt: text, to which the tokenizer's special tokens are added, or token ids, taken as they are.
            model: may be left out where one model alone can generate.
            truncate: whether a prompt that is too long is cut; else it is refused.
            task: one of the checkpoint's own, "translation_en_to_de" or another of `ModelInfo.generation_tasks`.
            source_lang: the language of the prompt, for models with languages; see `ModelInfo.languages`.
            target_lang: the language to generate, for models with languages.
            cache_salt: whose prompts the server may reuse the reading of, at most 256 characters: what was computed for
                one salt is never used for another.
            timeout: seconds until the answer must be complete.
            sampling: how tokens are chosen; see `Sampling`.
        """
        call = calls.generate(
            prompt,
            model=model,
            truncate=truncate,
            task=task,
            source_lang=source_lang,
            target_lang=target_lang,
            cache_salt=cache_salt,
            sampling=sampling,
        )
        return self._transport.one(call, self._transport.deadline(timeout))

    def chat(
        self,
        messages: Iterable[ChatMessage],
        *,
        model: str | None = None,
        truncate: bool | None = None,
        cache_salt: str | None = None,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """The next message of a conversation: [{"role": "user", "content": "..."}, ...], oldest message first.

        The rest is as in `generate`.
        """
        call = calls.chat(messages, model=model, truncate=truncate, cache_salt=cache_salt, sampling=sampling)
        return self._transport.one(call, self._transport.deadline(timeout))

    def stream(
        self,
        prompt: Prompt | Iterable[ChatMessage],
        *,
        model: str | None = None,
        truncate: bool | None = None,
        task: str | None = None,
        source_lang: str | None = None,
        target_lang: str | None = None,
        cache_salt: str | None = None,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Stream:
        """As `generate`, or with messages as `chat`, but piece by piece as tokens come. Leaving the loop cancels."""
        call = calls.stream(
            prompt,
            model=model,
            truncate=truncate,
            task=task,
            source_lang=source_lang,
            target_lang=target_lang,
            cache_salt=cache_salt,
            sampling=sampling,
        )
        return Stream(call, self._transport.start(call, call.request, self._transport.deadline(timeout)))

    @overload  # a str is an Iterable[str] too
    def tokenize(  # pyright: ignore[reportOverlappingOverload]
        self,
        texts: str,
        *,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> Tokenized: ...
    @overload
    def tokenize(
        self,
        texts: Iterable[str],
        *,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> list[Tokenized]: ...
    def tokenize(
        self,
        texts: str | Iterable[str],
        *,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The tokens of a text, or of each of a list. `add_special_tokens` unset is true."""
        call = calls.tokenize(texts, model=model, add_special_tokens=add_special_tokens)
        return self._transport.many(call, self._transport.deadline(timeout))

    @overload
    def detokenize(
        self,
        token_ids: Iterable[int],
        *,
        model: str | None = None,
        skip_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> str: ...
    @overload
    def detokenize(
        self,
        token_ids: Iterable[Iterable[int]],
        *,
        model: str | None = None,
        skip_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> list[str]: ...
    def detokenize(
        self,
        token_ids: Iterable[int] | Iterable[Iterable[int]],
        *,
        model: str | None = None,
        skip_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The text of a sequence of token ids, or of each of a list. `skip_special_tokens` unset is true."""
        call = calls.detokenize(token_ids, model=model, skip_special_tokens=skip_special_tokens)
        return self._transport.many(call, self._transport.deadline(timeout))
