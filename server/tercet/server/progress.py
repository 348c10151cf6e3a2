"""A progress bar for each model that loads, where a person watches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tercet.server.control import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tercet.server.supervisor import EngineProcess


class LoadingBars:
    """Bars on stderr, one a model; they go once every model is ready."""

    def __init__(self, models: Iterable[str]) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[stage]}"))
        self._progress = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
        self._loading: dict[str, TaskID] = {
            model: self._progress.add_task(model, total=None, stage="starting") for model in models
        }
        self._progress.start()

    def __call__(self, engine: EngineProcess) -> None:
        """Shows how far an engine is."""
        if engine.name not in self._loading:
            return
        if engine.state is State.READY:
            self._progress.remove_task(self._loading.pop(engine.name))
        elif engine.progress is not None:
            progress = engine.progress
            task = self._loading[engine.name]
            self._progress.update(task, total=progress.total, completed=progress.done, stage=progress.stage)
        if not self._loading:
            self.close()

    def close(self) -> None:
        """Takes the bars away."""
        self._progress.stop()
