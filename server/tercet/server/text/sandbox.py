"""The Jinja environment of chat templates: transformers' dialect, in a sandbox with limits.

Templates come with checkpoints, from strangers. Beside what Jinja's sandbox forbids, every call, attribute and item
they reach for, and every `*` and `**`, is checked against the render's deadline and a size that no honest template
needs. Imported with the first template, for jinja2 takes its time.
"""

from __future__ import annotations

import json
import time
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from jinja2.parser import Parser
    from jinja2.runtime import Context

MAX_TEXT = 16 << 20  # characters of a prompt or of a value on the way to it
MAX_BITS = 1 << 12  # of an integer
MAX_SECONDS = 5.0

TemplateError = jinja2.TemplateError
_deadline: ContextVar[float] = ContextVar("deadline")


def compile_template(source: str) -> jinja2.Template:
    """Raises TemplateError on a malformed template."""
    return _environment().from_string(source)


def render(template: jinja2.Template, variables: dict[str, object]) -> str:
    """The text of `template`. Raises TemplateError where it refuses, and what else its expressions may raise."""
    token = _deadline.set(time.monotonic() + MAX_SECONDS)
    try:
        pieces: list[str] = []
        size = 0
        for piece in template.generate(variables):
            _check_time()
            size += len(piece)
            if size > MAX_TEXT:
                raise SecurityError(f"the prompt exceeds {MAX_TEXT} characters")
            pieces.append(piece)
        return "".join(pieces)
    finally:
        _deadline.reset(token)


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            _check(value)
        return _check(super().call(context, obj, *args, **kwargs))

    def getattr(self, obj: Any, attribute: str) -> Any:
        return _check(super().getattr(obj, attribute))

    def getitem(self, obj: Any, argument: Any) -> Any:
        return _check(super().getitem(obj, argument))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple) and isinstance(times, int) and len(sequence) * times > MAX_TEXT:
                raise SecurityError("a repeated value exceeds the limit")
        integers = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and integers and left.bit_length() * right > MAX_BITS:
            raise SecurityError("a power exceeds the limit")
        return _check(super().call_binop(context, operator, left, right))


class _Generation(Extension):
    """`{% generation %}` marks the assistant's turns for training; the text is that of its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own way of declaring it

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _environment() -> _BoundedEnvironment:
    environment = _BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
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
    raise TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _check(value: Any) -> Any:
    _check_time()
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise SecurityError(f"a value exceeds {MAX_TEXT} characters")
    return value


def _check_time() -> None:
    deadline = _deadline.get(None)  # none while Jinja folds constants at compile time
    if deadline is not None and time.monotonic() > deadline:
        raise SecurityError(f"rendering took more than {MAX_SECONDS} seconds")
