"""`tercet serve`: from the command line to a running server.

Exit codes: 0 after a drain; 2 for settings, checkpoints and ports that can't be used, and one line says why; 1 for
failures.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tercet.server import config, logs
from tercet.server.budget import BudgetError, plan, plan_front_ends
from tercet.server.machine import DeviceError
from tercet.server.ports import BindError, address, hold_port, port_of
from tercet.server.shutdown import Shutdown
from tercet.server.sources import SourceError, resolve, resolve_adapter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tercet.server import wire
    from tercet.server.config import Rule, Settings
    from tercet.server.progress import LoadingBars
    from tercet.server.supervisor import Supervisor

_MODELS = (
    "NAME=SOURCE: a Hugging Face folder, a .gguf file or a hub id, and the name to serve it under. "
    "NAME=SOURCE+ADAPTER: a PEFT LoRA adapter, a folder or a hub id, is merged into its weights. "
    "A hub id may end in @REVISION."
)
_CONFIG = "Settings file; tercet.toml where there is one."
_LAST_ANSWERS = 5.0  # seconds after the grace for the front ends to end

log = logging.getLogger(__name__)


def serve(models: list[str] | None = None, config_file: Path | None = None, **flags: Any) -> None:
    """Serve models over gRPC.

    Every option can also be set in the environment (--max-rows as TERCET_MAX_ROWS, the models as TERCET_MODELS) and
    in tercet.toml (max_rows = …, and for one model in a table models.NAME). Options win over the environment, the
    environment over the file.
    """
    try:
        settings = config.load(flags, models or (), config_file)
        checkpoints = {model.name: resolve(model) for model in settings.models}
        adapters = {model.name: resolve_adapter(model) for model in settings.models}
        engines = plan(settings, checkpoints, adapters)
    except (config.ConfigError, SourceError, DeviceError, BudgetError) as error:
        raise _refuse(error) from None
    os.environ |= {logs.LEVEL: settings.log_level, logs.STYLE: settings.log_format}  # for every process
    logs.configure("supervisor")
    raise typer.Exit(asyncio.run(_serve(settings, engines, checkpoints)))


async def _serve(settings: Settings, engines: list[wire.EngineSettings], checkpoints: Mapping[str, Path]) -> int:
    """Runs the server; gives the exit code."""
    from tercet.server.child import StartError
    from tercet.server.server_metrics import ServerMetrics
    from tercet.server.supervisor import Supervisor

    shutdown = Shutdown()
    shutdown.listen()
    with tempfile.TemporaryDirectory(prefix="tercet-", ignore_cleanup_errors=True) as name:  # of mode 0700
        folder = Path(name)
        metrics = ServerMetrics(folder / "metrics")
        try:
            with hold_port(settings.host, settings.port) as held:
                addresses = {
                    "address": address(settings.host, port_of(held[0])),
                    "metrics_address": address(
                        settings.metrics_host, metrics.serve(settings.metrics_host, settings.metrics_port)
                    ),
                }
                front_ends = plan_front_ends(settings, checkpoints, held, metrics.folder)
                await _run(Supervisor(engines, front_ends, folder, metrics), settings, addresses, shutdown)
        except (BindError, StartError) as error:
            failed = isinstance(error, StartError) and not error.refused
            return _refuse(error, 1 if failed else 2).exit_code
    return 0


async def _run(supervisor: Supervisor, settings: Settings, addresses: Mapping[str, str], shutdown: Shutdown) -> None:
    """Serves until that is asked to end. Raises StartError."""
    bars = _bars(settings)
    if bars is not None:
        supervisor.watch(bars)
    work: list[asyncio.Future[Any]] = []
    try:
        await supervisor.start()
        work = [
            asyncio.ensure_future(task)
            for task in (supervisor.run(), shutdown.asked.wait(), _announce(supervisor, settings, addresses))
        ]
        await asyncio.wait(work[:2], return_when=asyncio.FIRST_COMPLETED)
        if work[0].done():
            work[0].result()
        await supervisor.drain(shutdown.hurried, settings.lame_duck + settings.grace + _LAST_ANSWERS)
    finally:
        await supervisor.stop()
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        if bars is not None:
            bars.close()


async def _announce(supervisor: Supervisor, settings: Settings, addresses: Mapping[str, str]) -> None:
    """Says once that the server is up."""
    await supervisor.serving()
    log.info("serving", extra=logs.fields(**addresses, models=[model.name for model in settings.models]))


def _refuse(error: Exception, code: int = 2) -> typer.Exit:
    """Says in one line why the server does not start; the exit with that code."""
    typer.echo(f"tercet: {' '.join(str(error).split())}", err=True)
    return typer.Exit(code)


def _bars(settings: Settings) -> LoadingBars | None:
    """Progress bars where a person watches."""
    if settings.log_format == "json" or not sys.stderr.isatty():
        return None
    from tercet.server.progress import LoadingBars

    return LoadingBars(model.name for model in settings.models)


def _option(name: str, rule: Rule, default: object) -> inspect.Parameter:
    """A setting as an option: not given is None, so that the environment and the file count."""
    flag = f"--{name.replace('_', '-')}"
    shown = None if default is None else str(default).lower() if rule.kind is bool else str(default)
    option = typer.Option(
        f"{flag}/--no-{name.replace('_', '-')}" if rule.kind is bool else flag,
        help=rule.help,
        metavar="|".join(rule.choices) if rule.choices else None,
        show_default=shown or False,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[rule.kind | None, option]
    )


def _signature() -> inspect.Signature:
    """The command line: an option for every setting, as typer reads it from a function's signature."""
    models = Annotated[list[str] | None, typer.Argument(help=_MODELS, metavar="NAME=SOURCE...", show_default=False)]
    file = Annotated[Path | None, typer.Option("--config", help=_CONFIG, show_default=False)]
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [
            inspect.Parameter("models", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=models),
            inspect.Parameter("config_file", keyword, default=None, annotation=file),
            *(_option(name, *entry) for name, entry in config.FLAG_RULES.items()),
        ]
    )


serve.__signature__ = _signature()  # type: ignore[attr-defined]
serve.__annotations__ = {}


def main() -> None:
    """`python -m tercet.server`."""
    app = typer.Typer(add_completion=False, no_args_is_help=True)
    app.callback()(lambda: None)  # keeps `serve` a command of its own
    app.command()(serve)
    app(prog_name="python -m tercet.server")
