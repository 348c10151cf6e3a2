"""The options that commands share: where the server is, and how tokens are chosen."""

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tercet.client.sync import Client


def connection(
    target: Annotated[
        str, typer.Option(envvar="TERCET_TARGET", help="HOST:PORT of the server, or another gRPC target.")
    ] = "127.0.0.1:50051",
    token: Annotated[str | None, typer.Option(envvar="TERCET_TOKEN", help="Bearer token.")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Connect by TLS.")] = False,
    ca: Annotated[
        Path | None,
        typer.Option(envvar="TERCET_CA", exists=True, dir_okay=False, help="Trust these certificates (PEM); with TLS."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for each call.")] = 60,
) -> "Client":
    """A client, closed when the command ends."""
    import grpc

    from tercet.client.sync import Client

    secure = tls or ca is not None
    credentials = grpc.ssl_channel_credentials(ca.read_bytes() if ca else None) if secure else None
    try:
        return Client(target, token=token, credentials=credentials, timeout=timeout)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def languages(
    task: Annotated[str | None, typer.Option(help="One of the checkpoint's own tasks.")] = None,
    source_lang: Annotated[str | None, typer.Option(help="The language of the prompt.")] = None,
    target_lang: Annotated[str | None, typer.Option(help="The language to generate.")] = None,
) -> dict[str, Any]:
    """What a prompt is and what is to become of it, for models that know several tasks or languages."""
    return {name: value for name, value in locals().items() if value is not None}


def sampling(
    max_new_tokens: Annotated[int | None, typer.Option(help="The most tokens to generate.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Divides the logits: 0, or 0.0001 to 100; 0 is greedy.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest tokens; 0 is off.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the likeliest of this mass; 1 is off.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Keep tokens this likely against the likeliest; 0 is off.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Penalize seen tokens: 0.01 to 100; 1 is off.")
    ] = None,
    no_repeat_ngram_size: Annotated[
        int | None, typer.Option(help="Never repeat so many tokens in a row; 0 is off.")
    ] = None,
    num_beams: Annotated[int | None, typer.Option(help="Beams of beam search; 1 is none.")] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="With beams: above 0 prefers longer outputs, below 0 shorter ones.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Make draws repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this string; may be repeated.")] = None,
) -> dict[str, Any]:
    """How tokens are chosen; what is left out is the checkpoint's own."""
    return {name: value for name, value in locals().items() if value not in (None, [])}


def provided(
    defaults: Mapping[str, Any] | None = None, **providers: Callable[..., Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Fills parameters of a command with what functions return, and gives the functions' options to the command line.

    `defaults` replaces those of the functions. A returned context manager is left when the command ends.
    """
    options = {name: inspect.signature(provider).parameters for name, provider in providers.items()}
    changed = defaults or {}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            with ExitStack() as stack:
                for name, provider in providers.items():
                    value = provider(**{option: given.pop(option) for option in options[name]})
                    given[name] = stack.enter_context(value) if hasattr(value, "__exit__") else value
                command(**given)

        own = [p for p in inspect.signature(command).parameters.values() if p.name not in providers]
        parameters = [*own, *(p for group in options.values() for p in group.values())]
        parameters = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=changed.get(p.name, p.default)) for p in parameters
        ]
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate
