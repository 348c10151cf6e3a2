"""The commands of `tercet` that talk to a server."""

import json
import math
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tercet.client.errors import NotFound, TercetError
from tercet.client.options import connection, languages, provided, sampling

if TYPE_CHECKING:
    from tercet.client.results import Generation
    from tercet.client.streams import Stream
    from tercet.client.sync import Client

LIMITLESS = {"timeout": math.inf}  # an answer may be long, and Ctrl-C ends it

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="May be left out where one model alone can do it.")]
Texts = Annotated[list[str] | None, typer.Argument(help="Texts; without any, the lines of --file or stdin.")]
Lines = Annotated[
    typer.FileBinaryRead | None, typer.Option("--file", "-f", help="Read texts from here, one a line; - is stdin.")
]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut what is too long; else it is refused.")]
CacheSalt = Annotated[
    str | None, typer.Option(help="Whose prompts the server may reuse the reading of; nobody else's are used.")
]


def read_texts(texts: list[str] | None, lines: Any) -> list[str]:
    """The arguments, or the lines of a file or of a stdin that is not a terminal."""
    if texts:
        return texts
    if lines is None:
        if sys.stdin.isatty():
            raise typer.BadParameter("no text given: pass it as an argument, by --file or on stdin")
        lines = sys.stdin.buffer
    return lines.read().decode().splitlines()


def read_prompt(prompt: str | None) -> str:
    """The argument, or all of a stdin that is not a terminal, without the newline at its end."""
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise typer.BadParameter("no prompt given: pass it as an argument or on stdin")
    return sys.stdin.buffer.read().decode().removesuffix("\n")


def print_json(value: Any) -> None:
    """One line of JSON."""
    typer.echo(json.dumps(value, ensure_ascii=False))


@provided(client=connection)
def embed(
    client: "Client",
    texts: Texts = None,
    file: Lines = None,
    model: Model = None,
    pooling: Annotated[str | None, typer.Option(help="mean, cls, last or max; else the checkpoint's own.")] = None,
    dimensions: Annotated[int | None, typer.Option(help="Keep the first so many components.")] = None,
    prompt_name: Annotated[str | None, typer.Option(help="The checkpoint's prompt to put before texts.")] = None,
    truncate: Truncate = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="Save a NumPy array here (.npy).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn texts into vectors: a line of numbers for each."""
    import numpy as np

    if pooling == "none":
        raise typer.BadParameter("a vector for every token is for the SDK; here it is one a text", param_hint="pooling")
    vectors = client.embed(
        read_texts(texts, file),
        model=model,
        pooling=cast("Any", pooling),
        dimensions=dimensions,
        prompt_name=prompt_name,
        truncate=truncate,
    )
    if output is not None:
        with output.open("wb") as saved:
            np.save(saved, vectors, allow_pickle=False)
        typer.echo(f"{output}: float32 {list(vectors.shape)}")
    elif as_json:
        for index, vector in enumerate(vectors):
            print_json({"index": index, "embedding": [float(str(x)) for x in vector]})
    else:
        np.savetxt(sys.stdout, vectors, fmt="%.7g")


@provided(LIMITLESS, client=connection, sampling=sampling, languages=languages)
def generate(
    client: "Client",
    sampling: dict[str, Any],
    languages: dict[str, Any],
    prompt: Annotated[str | None, typer.Argument(help="Text to continue or transform; - or nothing is stdin.")] = None,
    model: Model = None,
    truncate: Truncate = False,
    cache_salt: CacheSalt = None,
    file: Annotated[
        typer.FileBinaryRead | None,
        typer.Option("--file", "-f", help="Read many prompts from here, one a line; - is stdin. Answered in order."),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="How many outputs; more than one are not streamed.")] = 1,
    stats: Annotated[bool, typer.Option("--stats", help="Tell on stderr how fast it was.")] = False,
    as_json: Json = False,
) -> None:
    """Continue a prompt, or transform a source; or many of them."""
    options: dict[str, Any] = {"model": model, "truncate": truncate, "cache_salt": cache_salt, **languages, **sampling}
    if file is not None:
        if prompt is not None:
            raise typer.BadParameter("takes the place of a prompt", param_hint="--file")
        for generation in in_order(client.generate_many(read_texts(None, file), n=n, **options)):
            show_generation(generation, as_json)
        return
    text = read_prompt(prompt)
    if as_json or n > 1:
        show_generation(client.generate(text, n=n, **options), as_json)
    else:
        show_stream(client.stream(text, **options), stats)


@provided(LIMITLESS, client=connection, sampling=sampling)
def chat(
    client: "Client",
    sampling: dict[str, Any],
    message: Annotated[str | None, typer.Argument(help="What to say; without it, a conversation begins.")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="The system message.")] = None,
    model: Model = None,
    cache_salt: CacheSalt = None,
    stats: Annotated[bool, typer.Option("--stats", help="Tell on stderr how fast it was.")] = False,
    as_json: Json = False,
) -> None:
    """Talk with a model.

    Without a message a conversation begins: Ctrl-D or /exit ends it, /clear forgets it, Ctrl-C stops an answer.
    """
    messages = [{"role": "system", "content": system}] if system else []
    options: dict[str, Any] = {"model": model, "cache_salt": cache_salt, **sampling}
    if message is not None:
        messages.append({"role": "user", "content": read_prompt(message)})
        if as_json:
            show_generation(client.chat(messages, **options), as_json)
        else:
            show_stream(client.stream(messages, **options), stats)
        return
    start = list(messages)
    for line in typed_lines():
        if line == "/clear":
            messages = list(start)
            continue
        messages.append({"role": "user", "content": line})
        try:
            answer = show_stream(client.stream(messages, **options), stats)
        except TercetError as error:
            typer.echo(f"tercet: {error}", err=True)
            messages.pop()
        else:
            messages.append({"role": "assistant", "content": answer})


def typed_lines() -> Iterable[str]:
    """What is typed, with the editing and history of readline, or piped in; empty lines are left out."""
    if sys.stdin.isatty():
        with suppress(ImportError):  # where Python was built without it, lines can still be typed
            import_module("readline")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line == "/exit":
            return
        if line:
            yield line


def in_order(results: Iterable[tuple[int, "Generation"]]) -> Iterable["Generation"]:
    """Numbered results by their numbers, each as soon as it and all before it are there."""
    waiting: dict[int, Generation] = {}
    turn = 0
    for number, result in results:
        waiting[number] = result
        while turn in waiting:
            yield waiting.pop(turn)
            turn += 1


def show_generation(generation: "Generation", as_json: bool) -> None:
    """All outputs, complete."""
    if as_json:
        print_json(asdict(generation))
    else:
        for output in generation.outputs:
            typer.echo(output.text)


def show_stream(stream: "Stream", stats: bool) -> str:
    """Prints pieces as they come and returns all of the text. Ctrl-C ends the answer, and a second one the program."""
    start, first, tokens, text, usage = time.monotonic(), 0.0, 0, "", None
    try:
        for piece in stream:
            first = first or time.monotonic()
            tokens += len(piece.token_ids)
            text += piece.text
            usage = piece.usage
            typer.echo(piece.text, nl=False)
    finally:
        typer.echo()
    if stats and first:
        rate = (tokens - 1) / max(time.monotonic() - first, 1e-9)
        read = f", {usage.cached_tokens} of {usage.prompt_tokens} prompt tokens cached" if usage else ""
        typer.echo(
            f"first token after {first - start:.3f} s, then {rate:.1f} tokens/s, {tokens} tokens{read}", err=True
        )
    return text


@provided(client=connection)
def tokenize(
    client: "Client", texts: Texts = None, file: Lines = None, model: Model = None, as_json: Json = False
) -> None:
    """Show the tokens of texts: a line of ids and a line of tokens for each."""
    for tokenized in client.tokenize(read_texts(texts, file), model=model):
        if as_json:
            print_json(asdict(tokenized))
        else:
            typer.echo(" ".join(map(str, tokenized.token_ids)))
            typer.echo(" ".join(tokenized.tokens))


@provided(client=connection)
def models(client: "Client", as_json: Json = False) -> None:
    """List the server's models."""
    found = client.models()
    if as_json:
        print_json([asdict(model) for model in found])
        return
    rows = [("NAME", "STATE", "FAMILY", "ARCHITECTURE", "TASKS", "LENGTH", "PARAMETERS", "DTYPE", "DEVICE")]
    for m in found:
        size = f"{m.parameters / 1e6:.1f}M"
        dtype = m.dtype if m.quantization_error is None else f"{m.dtype} (error {m.quantization_error:.1e})"
        rows.append(
            (m.name, m.state, m.family, m.architecture, ",".join(m.tasks), str(m.max_length), size, dtype, m.device)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@provided({"timeout": 5.0}, client=connection)
def health(
    client: "Client",
    model: Annotated[str | None, typer.Argument(help="Ask about this model; else about the whole server.")] = None,
    as_json: Json = False,
) -> None:
    """Tell whether a server, or one of its models, serves.

    Exit code 0 if it does, 1 if it does not, 3 if it is out of reach.
    """
    try:
        status = client.health(model)
    except NotFound:
        status = "SERVICE_UNKNOWN"
    if as_json:
        print_json({"model": model, "status": status})
    else:
        typer.echo(status)
    raise typer.Exit(0 if status == "SERVING" else 1)
