"""The process that renders one chat template, started by `renderer.py`: transformers' dialect of Jinja in a sandbox.

Templates come with checkpoints, from strangers. Jinja's sandbox keeps them from Python; the operating system keeps them
from the machine's time and memory, of which one short expression may take any amount: the limit of the address space
turns too large a value into a MemoryError, and a timer whose signal nobody handles ends the process.

Each line on standard input is answered by one on standard output. The first is the template as a JSON string, those
that follow are the variables of a render as a JSON object.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import jinja2
import msgspec
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tercet.server.text.renderer import MAX_TEXT, Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2.parser import Parser

_MAX_COMPLAINT = 300  # characters


class _Generation(Extension):
    """`{% generation %}` marks the assistant's turns for training; the text is that of its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own way of declaring it

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def main(arguments: Sequence[str]) -> None:
    """Answers until standard input ends. The arguments: seconds for each answer, and bytes of address space."""
    seconds, memory = map(float, arguments)
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    template: jinja2.Template | None = None
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            message = msgspec.json.decode(line)
            if template is None:
                template = _environment().from_string(message)
                answer = msgspec.json.encode(Answer())
            else:
                answer = msgspec.json.encode(Answer(text=_render(template, message)))
        except Exception as error:  # a template's expressions may raise anything
            answer = msgspec.json.encode(Answer(error=_describe(error)))
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


def _render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    pieces: list[str] = []
    size = 0
    for piece in template.generate(variables):
        size += len(piece)
        if size > MAX_TEXT:
            raise jinja2.TemplateError(f"the prompt exceeds {MAX_TEXT} characters")
        pieces.append(piece)
    return "".join(pieces)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    cast("dict[str, Any]", environment.globals).update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _describe(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    name = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
    return " ".join(f"{name}{error}".split())[:_MAX_COMPLAINT]


if __name__ == "__main__":
    main(sys.argv[1:])
