"""What configs say about rotary positions, in `rope_parameters` or in `rope_theta` and `rope_scaling` before that."""

from __future__ import annotations

import math

from tercet.server.models.architectures.architecture import LENGTH
from tercet.server.models.checkpoint.config import Config, Key, Section, choice, flag, integer, number
from tercet.server.models.spec import RotarySpec

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
THETA = number("theta", 0, 1e12, default=10_000.0)
KIND = choice("scaling", {kind: kind for kind in KINDS}, default="default")
SHARE = number("rotary_share", 0, 1, default=1.0)
FACTOR = number("factor", 0, 1e6, default=None)
ORIGINAL_LENGTH = integer("original_max_length", *LENGTH, default=None)
# What is read last counts, as in transformers.
PARAMETERS = Section(
    {
        "rope_theta": THETA,
        "type": KIND,
        "rope_type": KIND,
        "factor": FACTOR,
        "partial_rotary_factor": SHARE,
        "original_max_position_embeddings": ORIGINAL_LENGTH,
        "low_freq_factor": number("low_freq_factor", 0, 1e6, default=1.0),
        "high_freq_factor": number("high_freq_factor", 0, 1e6, default=4.0),
        "beta_fast": number("beta_fast", 0, 1e6, default=32.0),
        "beta_slow": number("beta_slow", 0, 1e6, default=1.0),
        "attention_factor": number("attention_factor", 0, 1e6, default=None),
        "mscale": number("mscale", 0, 1e6, default=None),
        "mscale_all_dim": number("mscale_all_dim", 0, 1e6, default=None),
        "truncate": flag("truncate", default=True),
    }
)
CONFIG = {
    "rope_parameters": PARAMETERS,
    "rope_scaling": PARAMETERS,
    "original_max_position_embeddings": ORIGINAL_LENGTH,
}


def rotary(config: Config, head_dim: int) -> RotarySpec:
    """The rotary positions of heads of `head_dim`."""
    kind = "factors" if config.get("rotary_factors", False) else config["scaling"]
    original = config["original_max_length"] or config["max_length"]
    factor: float = config["factor"] or config["max_length"] / original
    if config["factor"] is None and kind in ("linear", "llama3"):
        raise config.refuse("scaling", "it must have a factor beside it")
    if config["high_freq_factor"] <= config["low_freq_factor"]:
        raise config.refuse("high_freq_factor", f"it must be above low_freq_factor = {config['low_freq_factor']}")
    dim = int(head_dim * config["rotary_share"])
    if not 0 < dim + dim % 2 <= head_dim:  # the last of an odd number takes a further dimension to pair with
        raise config.refuse("rotary_share", f"it must leave some of a head's {head_dim} dimensions, in pairs")
    return RotarySpec(
        theta=config["theta"],
        dim=dim,
        scaling=kind,
        factor=factor,
        low_freq_factor=config["low_freq_factor"],
        high_freq_factor=config["high_freq_factor"],
        original_max_length=original,
        beta_fast=config["beta_fast"],
        beta_slow=config["beta_slow"],
        attention_factor=_attention_factor(config, factor) if kind == "yarn" else 1.0,
        truncate=config["truncate"],
    )


def reach(config: Config, positions: RotarySpec) -> int:
    """How long sequences may be: as the config says, or as much longer than the original ones as yarn makes them."""
    scaled = int(positions.factor * positions.original_max_length) if positions.scaling == "yarn" else 0
    return max(config["max_length"], scaled)


def _attention_factor(config: Config, factor: float) -> float:
    """What yarn multiplies cosines and sines by unless told: 0.1 ln(factor) + 1 (Peng et al., YaRN, 2023, eq. 22).

    With two values of mscale, it is what one makes of that divided by what the other does, as DeepSeek-V2 has it.
    """

    def scaled(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0

    if config["attention_factor"]:
        return config["attention_factor"]
    if config["mscale"] and config["mscale_all_dim"]:
        return scaled(config["mscale"]) / scaled(config["mscale_all_dim"])
    return scaled(1)


# What GGUF files leave unsaid.
UNSCALED = {key.name: key.default for key in PARAMETERS.keys.values() if isinstance(key, Key)}
