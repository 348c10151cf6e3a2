"""An earlier state of the sources, to be measured beside this one."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.environment import ROOT

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def source_tree(named: str | None) -> Generator[Path | None]:
    """A folder of the tree `named`: itself a folder, or a revision, checked out until the end. None is none.

    Raises SystemExit where it is neither.
    """
    if named is None:
        yield None
    elif (folder := Path(named)).is_dir():
        yield folder.resolve()
    else:
        with tempfile.TemporaryDirectory() as temporary:
            tree = Path(temporary) / "tree"
            _git("worktree", "add", "--detach", "--quiet", str(tree), named)
            try:
                yield tree
            finally:
                _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"git {arguments[0]} failed: {done.stderr.strip()}")
