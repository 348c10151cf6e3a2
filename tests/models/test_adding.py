"""Adding an architecture takes a file and a row, as docs/adding-an-architecture.md says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.checkpoints import save
from support.forward import encode, texts
from tercet.server.models import CheckpointError, load_model

ROOT = Path(__file__).parents[2]
FOLDER = Path("tercet/server/models/architectures")
PAGE = (ROOT / "docs" / "adding-an-architecture.md").read_text(encoding="utf-8")
LOAD = """
import sys
from pathlib import Path

import torch
from support.forward import encode, texts
from tercet.server.models import load_model

folder = Path(sys.argv[1])
torch.save(encode(load_model(folder, device=torch.device("cpu")), texts(9, 4)), folder / "hidden.pt")
"""


def test_a_new_file_is_found(tmp_path: Path) -> None:
    """A copy of the package with one more file serves one more `model_type`."""
    package, checkpoint = tmp_path / "package", tmp_path / "checkpoint"
    shutil.copytree(ROOT / "server", package, ignore=shutil.ignore_patterns("__pycache__"))
    source = (package / FOLDER / "distilbert.py").read_text(encoding="utf-8")
    (package / FOLDER / "another.py").write_text(source.replace('name="distilbert"', 'name="another"'))
    save(checkpoint, "distilbert")
    expected = encode(load_model(checkpoint, device=torch.device("cpu")), texts(9, 4))
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "another"}))
    with pytest.raises(CheckpointError, match='model_type is "another", it must be '):
        load_model(checkpoint, device=torch.device("cpu"))
    paths = [package, *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    subprocess.run([sys.executable, "-c", LOAD, checkpoint], env=environment, check=True)
    assert all(map(torch.equal, torch.load(checkpoint / "hidden.pt"), expected))


def test_the_page_shows_the_code_as_it_is() -> None:
    sources = (ROOT / "server" / FOLDER / "distilbert.py", ROOT / "tests" / "support" / "encoder_rows.py")
    code = "".join(source.read_text(encoding="utf-8") for source in sources)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 5
    assert [block for block in blocks if block not in code] == []
