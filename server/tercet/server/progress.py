"""A progress bar for each model that loads, where a person watches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tercet.server.supervisor import State

if TYPE_CHECKING:
    from tercet.server.supervisor import Engine


class LoadingBars:
    """Bars on stderr; they go once every model is ready."""

    def __init__(self, count: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[stage]}"))
        self._progress = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._left = count
        self._progress.start()

    def __call__(self, engine: Engine) -> None:
        """Shows how far an engine is."""
        if engine.name not in self._tasks:
            self._tasks[engine.name] = self._progress.add_task(engine.name, total=None, stage="starting")
        task = self._tasks[engine.name]
        if engine.progress is not None:
            progress = engine.progress
            self._progress.update(task, total=progress.total, completed=progress.done, stage=progress.stage)
        if engine.state is State.READY and not self._progress.finished:
            self._progress.update(task, total=1, completed=1, stage="ready")
            self._left -= 1
            if self._left == 0:
                self.close()

    def close(self) -> None:
        """Takes the bars away."""
        self._progress.stop()
