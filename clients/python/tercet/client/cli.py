"""The `tercet` command.

Commands that only talk to a server are the SDK's own. Installed packages add theirs as entry points in the group
`tercet.commands`, each a function as typer takes them; they are imported only when run, or listed by `--help`.

Exit codes: 0; 1 an error, or a server that is not serving; 2 wrong usage or an invalid argument; 3 no server within
reach or in time; 130 interrupted.
"""

import os
import sys
from importlib.metadata import entry_points, version
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tercet.client import commands, task_commands
from tercet.client.errors import DeadlineExceeded, InvalidArgument, TercetError, Unavailable

COMMAND_GROUP = "tercet.commands"
EXIT_CODES: dict[type[TercetError], int] = {InvalidArgument: 2, Unavailable: 3, DeadlineExceeded: 3}


class Commands(TyperGroup):
    """The SDK's commands and the added ones; errors of any become one line and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Every name, the SDK's first."""
        return [*super().list_commands(ctx), *sorted(entry_points(group=COMMAND_GROUP).names)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The SDK's command of that name, else the added one, else None."""
        return super().get_command(ctx, cmd_name) or added_command(cmd_name)

    def invoke(self, ctx: Any) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except TercetError as error:
            fail(str(error), EXIT_CODES.get(type(error), 1))
        except UnicodeDecodeError as error:
            fail(f"the input is not UTF-8: {error.reason} at byte {error.start}", 2)


def fail(message: str, code: int) -> None:
    """Ends the program with one line on stderr."""
    typer.echo(f"tercet: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


def added_command(name: str) -> Any:
    """A command from outside the SDK; one that can't be imported says what to install."""
    found = [*entry_points(group=COMMAND_GROUP, name=name)]
    if not found:
        return None
    try:
        function = found[0].load()
        settings = {}
    except ModuleNotFoundError as error:
        missing = error.name

        def function() -> None:
            fail(f"{name} needs {missing}: pip install 'tercet[server]'", 1)

        function.__doc__ = "Not installed: comes with the extra 'server'."
        settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name, context_settings=settings)(function)
    return typer.main.get_command(single)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    """Prints the version and ends the program."""
    if wanted:
        typer.echo(f"tercet {version('tercet')}")
        raise typer.Exit


@app.callback()
def tercet(
    _version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Serves transformer models over gRPC, and talks to such a server."""


for command in (
    commands.embed,
    commands.generate,
    commands.chat,
    task_commands.rerank,
    task_commands.classify,
    task_commands.tag,
    task_commands.fill_mask,
    task_commands.answer,
    task_commands.score,
    commands.tokenize,
    commands.models,
    commands.health,
):
    app.command()(command)


def main() -> None:
    """Runs the command line."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own log would repeat the error that we print
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character is no reason to stop
    app(prog_name="tercet")


if __name__ == "__main__":
    sys.exit(main())
