"""Structured logs on stderr: one JSON object a line, or short lines for people on a terminal.

An event has a name and fields: `log.info("serving", extra=fields(address=address))`. Fields are names, ids and figures;
prompts and generated text are never logged.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import TextIO, TypedDict

LEVEL = "TERCET_LOG_LEVEL"
STYLE = "TERCET_LOG_FORMAT"


class Extra(TypedDict):
    """What `extra=` of a logging call takes."""

    fields: dict[str, object]


def fields(**values: object) -> Extra:
    """The fields of an event, as the `extra` argument of a logging call."""
    return {"fields": values}


def configure(process: str) -> None:
    """Sends the logs of this process, so called, to stderr, as the environment says, which a server's processes share.

    TERCET_LOG_LEVEL is the least severe level. TERCET_LOG_FORMAT is "json", "text", or "auto": JSON unless stderr is a
    terminal.
    """
    style = os.environ.get(STYLE, "auto")
    readable = style == "text" or (style == "auto" and sys.stderr.isatty())
    handler = _StderrHandler()
    handler.setFormatter(_TextFormatter(process) if readable else _JsonFormatter(process))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("tercet").setLevel(os.environ.get(LEVEL, "info").upper())


class _StderrHandler(logging.StreamHandler):
    """Writes to what sys.stderr is at the time: progress bars put themselves before it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


class _ProcessFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process


class _JsonFormatter(_ProcessFormatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self.process,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class _TextFormatter(_ProcessFormatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        values = getattr(record, "fields", {})
        head = [time, f"{record.levelname:<7}", f"[{self.process}]", record.getMessage()]
        line = " ".join([*head, *(f"{k}={v}" for k, v in values.items())])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
