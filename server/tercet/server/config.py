"""The server's settings: frozen, checked, from flags, then the environment, then tercet.toml, then defaults.

Every setting is one field of `Settings` or `ModelSettings`, with its range and its help; the command line, the names in
the environment (`TERCET_MAX_ROWS`) and the keys of tercet.toml (`max_rows`) are made from these fields. `ModelSettings`
are keys of a table `[models.NAME]`; those that most models share are also keys at the top, for every model.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_FILE = Path("tercet.toml")
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PREFIX = "TERCET_"
_CONFIG = "TERCET_CONFIG"
_MODELS = "TERCET_MODELS"  # NAME=SOURCE[+ADAPTER], separated by spaces
_KINDS = {str: "text", int: "an integer", float: "a number", bool: "true or false"}
_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


class ConfigError(ValueError):
    """A setting can't be used; the one line names the key, its value, where it came from and the limit."""


class Rule(NamedTuple):
    """What a setting may be."""

    kind: type
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    aliases: Mapping[Any, Any] = {}
    """Other names of choices."""
    shared: bool = False
    """Whether a model's setting may also be given for every model."""


def _setting(default: object, help: str, kind: type | None = None, **limits: Any) -> Any:
    rule = Rule(kind or type(default), help, **limits)
    return field(default=default, metadata={"rule": rule})


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """One model: where its checkpoint is and how its engine runs."""

    name: str
    source: str = _setting("", "Hugging Face folder, .gguf file or hub id.")
    revision: str | None = _setting(None, "Branch, tag or commit of a hub id.", str)
    adapter: str | None = _setting(None, "Folder or hub id of a PEFT LoRA adapter, merged into the weights.", str)
    adapter_revision: str | None = _setting(None, "Branch, tag or commit of the adapter's hub id.", str)
    memory_gib: float | None = _setting(None, "GiB its engine may hold; unset is its share.", float, low=0.001)
    threads: int | None = _setting(None, "CPU threads of its engine; unset is its share.", int, low=1, high=1024)
    page_size: int = _setting(16, "Tokens of one page of KV cache.", low=1, high=1024)
    device: str = _setting("auto", "auto, cpu, cuda or cuda:N.", shared=True)
    dtype: str = _setting(
        "auto",
        "Precision; also by the names fp32, bf16 and fp16. fp8 is of the products of layers, in bfloat16 elsewhere.",
        choices=("auto", "float32", "tf32", "bfloat16", "float16", "fp8"),
        aliases={"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"},
        shared=True,
    )
    kernels: str = _setting(
        "auto", "Implementation of the kernels.", choices=("auto", "triton", "cpu", "reference"), shared=True
    )
    allow_pickle: bool = _setting(
        False, "Whether weights are read from pytorch_model.bin where there are no safetensors.", shared=True
    )
    prefix_cache: bool = _setting(
        True, "Whether beginnings of prompts, and sources, that are in pages already are not read again.", shared=True
    )
    layout: str = _setting("auto", "Layout of batches.", choices=("auto", "padded", "packed"), shared=True)
    max_length: int | None = _setting(
        None, "Tokens of a sequence; unset is the checkpoint's own limit.", int, low=2, high=1 << 24, shared=True
    )
    max_rows: int = _setting(128, "Sequences of one batch.", low=1, high=65536, shared=True)
    max_batch_tokens: int | None = _setting(
        None,
        "Tokens of one batch; unset is 2048 on a CPU and 8192 on a GPU, for small encoders what fits its L2 cache.",
        int,
        low=1,
        high=1 << 24,
        shared=True,
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole server."""

    models: tuple[ModelSettings, ...]
    """Sorted by name, at least one."""
    host: str = _setting("127.0.0.1", "Address to serve gRPC on.")
    port: int = _setting(50051, "Port to serve gRPC on; 0 is any free one.", low=0, high=65535)
    metrics_host: str = _setting("127.0.0.1", "Address to serve /metrics on.")
    metrics_port: int = _setting(9464, "Port to serve /metrics on; 0 is any free one.", low=0, high=65535)
    memory: float = _setting(0.9, "Share of the device's free memory that all models may hold.", low=0.01, high=1)
    threads: int | None = _setting(
        None, "CPU threads that all engines share; unset is every core.", int, low=1, high=1024
    )
    front_ends: int | None = _setting(
        None,
        "Processes that serve gRPC, with equal shares of the queues; unset is one for 8 cores, 1 to 4.",
        int,
        low=1,
        high=64,
    )
    max_message_bytes: int = _setting(16 << 20, "Bytes of one request message.", low=1024, high=(1 << 31) - 1)
    max_inputs: int = _setting(2048, "Inputs, texts or sequences of one call.", low=1, high=1 << 20)
    max_text_chars: int = _setting(1_000_000, "Characters of one text.", low=1, high=1 << 30)
    max_call_chars: int = _setting(4_000_000, "Characters of all texts of one call.", low=1, high=1 << 30)
    max_outputs: int = _setting(64, "Outputs of one generation (n).", low=1, high=1024)
    max_stops: int = _setting(16, "Stop strings, and stop tokens, of one generation.", low=0, high=1024)
    max_stop_chars: int = _setting(256, "Characters of one stop string.", low=1, high=65536)
    max_messages: int = _setting(1024, "Messages of one chat.", low=1, high=65536)
    max_queue: int = _setting(4096, "Sequences that may wait or run in one model.", low=1, high=1 << 24)
    max_queue_tokens: int = _setting(4 << 20, "Prompt tokens that may wait or run in one model.", low=1, high=1 << 40)
    max_queue_chars: int = _setting(
        16_000_000, "Characters that may wait for a tokenizer or run in one.", low=1, high=1 << 40
    )
    max_streams: int = _setting(
        1024, "Concurrent calls of one connection; generations of one GenerateMany.", low=1, high=1 << 20
    )
    read_ahead: int = _setting(4, "Requests of an EmbedStream that are worked on at once.", low=1, high=1024)
    keepalive: float = _setting(10.0, "Shortest interval in seconds that clients may ping at.", low=0.1, high=86400)
    lame_duck: float = _setting(0.5, "Seconds between NOT_SERVING and refusing new calls.", low=0, high=3600)
    grace: float = _setting(30.0, "Seconds that running calls get to finish when draining.", low=0, high=86400)
    reflection: bool = _setting(True, "Whether gRPC server reflection is on.")
    log_level: str = _setting("info", "Least severe events to log.", choices=("debug", "info", "warning", "error"))
    log_format: str = _setting("auto", "auto is JSON unless on a terminal.", choices=("auto", "json", "text"))


def rules(settings: type[Settings] | type[ModelSettings]) -> dict[str, tuple[Rule, Any]]:
    """Each setting's rule and default by name."""
    return {f.name: (f.metadata["rule"], f.default) for f in fields(settings) if "rule" in f.metadata}


SERVER_RULES = rules(Settings)
MODEL_RULES = rules(ModelSettings)
SHARED_RULES = {name: entry for name, entry in MODEL_RULES.items() if entry[0].shared}
FLAG_RULES = SERVER_RULES | SHARED_RULES


class _Given(NamedTuple):
    """A value as someone gave it, and where."""

    value: Any
    origin: str


def load(
    flags: Mapping[str, Any],
    models: Sequence[str] = (),
    config: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings of flags (None is not given), `NAME=SOURCE[+ADAPTER]` arguments, environment and file.

    Raises ConfigError.
    """
    path = config or (Path(environment[_CONFIG]) if _CONFIG in environment else None)
    table = _read_file(path)
    tables = table.pop("models", {})
    from_file = {key: _Given(value, f"in {path or DEFAULT_FILE}") for key, value in table.items()}
    from_environment = {
        key: _Given(environment[name], f"from {name}")
        for key in FLAG_RULES
        if (name := _PREFIX + key.upper()) in environment
    }
    from_flags = {
        key: _Given(value, f"from --{key.replace('_', '-')}") for key, value in flags.items() if value is not None
    }
    for key in from_file.keys() - FLAG_RULES.keys():
        raise ConfigError(f"{key}: no such setting ({from_file[key].origin})")
    sources = _named_sources(models or environment.get(_MODELS, "").split())
    if not isinstance(tables, dict) or not all(isinstance(own, dict) for own in tables.values()):
        raise ConfigError(f"models: {tables!r} is not a table of tables [models.NAME] (in {path or DEFAULT_FILE})")
    if not (names := sorted(sources.keys() | tables.keys())):
        raise ConfigError("models: none given; name at least one as NAME=SOURCE or in a table [models.NAME]")

    def model(name: str) -> ModelSettings:
        if not MODEL_NAME.fullmatch(name):
            raise ConfigError(f"models: {name!r} is not a name of 1 to 64 letters, digits, '.', '_' and '-'")
        own = {key: _Given(value, f"in {path or DEFAULT_FILE}") for key, value in tables.get(name, {}).items()}
        for key in own.keys() - MODEL_RULES.keys():
            raise ConfigError(f"models.{name}.{key}: no such setting ({own[key].origin})")
        values = _checked(from_file, SHARED_RULES) | _checked(own, MODEL_RULES, f"models.{name}.")
        values |= _checked(from_environment, SHARED_RULES) | _checked(from_flags, SHARED_RULES) | sources.get(name, {})
        if not values.get("source"):
            raise ConfigError(f"models.{name}.source: not given")
        return ModelSettings(name=name, **values)

    return Settings(
        models=tuple(model(name) for name in names),
        **_checked(from_file | from_environment | from_flags, SERVER_RULES),
    )


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None and not os.path.exists(DEFAULT_FILE):
        return {}
    path = path or DEFAULT_FILE
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        repr(table)  # a hexadecimal number may be read, and have more digits than Python would show
        return table
    except OSError as error:
        raise ConfigError(f"config: can't read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # ill-formed, not UTF-8, or more digits or depth than Python reads
        raise ConfigError(f"config: {path} is not TOML: {error}") from None


def _named_sources(arguments: Sequence[str]) -> dict[str, dict[str, str | None]]:
    """What each `NAME=SOURCE[@REVISION][+ADAPTER[@REVISION]]` says of its model."""
    sources: dict[str, dict[str, str | None]] = {}
    for argument in arguments:
        name, equals, both = argument.partition("=")
        base, plus, added = _cut(both)
        if not equals or not base or (plus and not added):
            raise ConfigError(f"models: {argument!r} is not NAME=SOURCE or NAME=SOURCE+ADAPTER")
        if name in sources:
            raise ConfigError(f"models: {name!r} is given twice")
        source, revision = _revision(base)
        adapter, adapter_revision = _revision(added)
        sources[name] = {
            "source": source, "revision": revision, "adapter": adapter or None, "adapter_revision": adapter_revision,
        }  # fmt: skip
    return sources


def _cut(both: str) -> tuple[str, str, str]:
    """SOURCE+ADAPTER at its "+": the last after a path that is there, else the first, since hub ids have none."""
    if os.path.exists(both):  # Path.exists may raise
        return both, "", ""
    places = [place for place, letter in enumerate(both) if letter == "+"]
    place = next((place for place in reversed(places) if os.path.exists(both[:place])), None)
    return both.partition("+") if place is None else (both[:place], "+", both[place + 1 :])


def _revision(source: str) -> tuple[str, str | None]:
    """SOURCE[@REVISION] in two; a path that is there has no revision."""
    if "@" not in source or os.path.exists(source):
        return source, None
    path, _, revision = source.rpartition("@")
    return path, revision


def _checked(given: Mapping[str, _Given], table: Mapping[str, tuple[Rule, Any]], prefix: str = "") -> dict[str, Any]:
    return {key: _check(prefix + key, table[key][0], value) for key, value in given.items() if key in table}


def _check(key: str, rule: Rule, given: _Given) -> Any:
    value = _convert(given.value, rule.kind)
    if value is None:
        raise ConfigError(f"{key}: {given.value!r} is not {_KINDS[rule.kind]} ({given.origin})")
    value = rule.aliases.get(value, value)
    if rule.choices is not None and value not in rule.choices:
        raise ConfigError(
            f"{key}: {value!r} is not one of {', '.join((*rule.choices, *rule.aliases))} ({given.origin})"
        )
    if rule.low is not None and value < rule.low:
        raise ConfigError(f"{key}: {value} is below the least, {rule.low} ({given.origin})")
    if rule.high is not None and value > rule.high:
        raise ConfigError(f"{key}: {value} is above the most, {rule.high} ({given.origin})")
    return value


def _convert(value: object, kind: type) -> Any:
    """The value as `kind`, or None where it is none. Text (from the environment) is read; numbers are not rounded."""
    if isinstance(value, str) and kind is bool:
        return _BOOLEANS.get(value.lower())
    if isinstance(value, str) or (kind is float and type(value) is int):
        try:
            value = kind(value)
        except (ValueError, OverflowError):
            return None
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if type(value) is kind and finite else None
