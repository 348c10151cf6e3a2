"""The client to await."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from tercet.client import calls
from tercet.client.aio_tasks import AsyncTasks
from tercet.client.connections import CONNECTIONS
from tercet.client.many import AsyncMany
from tercet.client.streams import AsyncStream
from tercet.client.transport import AsyncTransport

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


class AsyncClient(AsyncMany, AsyncTasks):
    """`Client` with methods to await, for many requests at once.

    It belongs to the event loop of its first call.
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
        """As `Client`."""
        self._transport = AsyncTransport(target, token, credentials, timeout, connections)

    async def close(self) -> None:
        """Cancels what still runs and hangs up."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def wait_ready(self, model: str | None = None, *, timeout: float | None = None) -> None:
        """As `Client.wait_ready`."""
        await self._transport.wait_ready(model, self._transport.deadline(timeout))

    async def health(self, model: str | None = None, *, timeout: float | None = None) -> HealthStatus:
        """As `Client.health`."""
        return await self._transport.one(calls.health(model), self._transport.deadline(timeout))

    async def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """As `Client.models`."""
        return await self._transport.one(calls.models(), self._transport.deadline(timeout))

    @overload
    async def embed(
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
    async def embed(
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
    async def embed(
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
        """As `Client.embed`."""
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
        return await self._transport.many(call, self._transport.deadline(timeout))

    async def generate(
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
        """As `Client.generate`."""
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
        return await self._transport.one(call, self._transport.deadline(timeout))

    async def chat(
        self,
        messages: Iterable[ChatMessage],
        *,
        model: str | None = None,
        truncate: bool | None = None,
        cache_salt: str | None = None,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """As `Client.chat`."""
        call = calls.chat(messages, model=model, truncate=truncate, cache_salt=cache_salt, sampling=sampling)
        return await self._transport.one(call, self._transport.deadline(timeout))

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
    ) -> AsyncStream:
        """As `Client.stream`."""
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
        return AsyncStream(call, self._transport.start(call, call.request, self._transport.deadline(timeout)))

    @overload  # a str is an Iterable[str] too
    async def tokenize(  # pyright: ignore[reportOverlappingOverload]
        self,
        texts: str,
        *,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> Tokenized: ...
    @overload
    async def tokenize(
        self,
        texts: Iterable[str],
        *,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> list[Tokenized]: ...
    async def tokenize(
        self,
        texts: str | Iterable[str],
        *,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> Any:
        """As `Client.tokenize`."""
        call = calls.tokenize(texts, model=model, add_special_tokens=add_special_tokens)
        return await self._transport.many(call, self._transport.deadline(timeout))

    @overload
    async def detokenize(
        self,
        token_ids: Iterable[int],
        *,
        model: str | None = None,
        skip_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> str: ...
    @overload
    async def detokenize(
        self,
        token_ids: Iterable[Iterable[int]],
        *,
        model: str | None = None,
        skip_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> list[str]: ...
    async def detokenize(
        self,
        token_ids: Iterable[int] | Iterable[Iterable[int]],
        *,
        model: str | None = None,
        skip_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> Any:
        """As `Client.detokenize`."""
        call = calls.detokenize(token_ids, model=model, skip_special_tokens=skip_special_tokens)
        return await self._transport.many(call, self._transport.deadline(timeout))
