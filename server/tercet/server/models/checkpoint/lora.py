"""LoRA adapters as PEFT saves them (Hu et al., LoRA, 2021), merged into a checkpoint's tensors as these are read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from tercet.server.models.checkpoint.config import Config, Key, choice, flag, integer, number, read_json
from tercet.server.models.checkpoint.folder import ADAPTER, Weights
from tercet.server.models.checkpoint.weights import is_head
from tercet.server.models.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from tercet.server.models.checkpoint.source import Checkpoint, StoredTensor
    from tercet.server.models.checkpoint.weights import Names

# What an adapter was trained for, as the task of a head; None is whatever the base model has.
TASKS = {
    "SEQ_CLS": "classify",
    "TOKEN_CLS": "tag",
    "QUESTION_ANS": "answer",
    "CAUSAL_LM": "generate",
    "SEQ_2_SEQ_LM": "generate",
    "FEATURE_EXTRACTION": None,
}
RANK = (1, 65_536)
ALPHA = (0, 1e6)


def _by_module(name: str, value: Key) -> Key:
    """An object of values by patterns of module names."""

    def accept(patterns: Any) -> dict[re.Pattern[str], Any]:
        if not isinstance(patterns, Mapping):
            raise TypeError
        pairs = cast("Mapping[str, Any]", patterns).items()
        try:
            return {re.compile(rf"(.*\.)?({pattern})"): value.accept(each) for pattern, each in pairs}
        except re.error as error:
            raise ValueError from error

    return Key(name, f"an object of module names, and {value.allowed} for each", accept, default={})


def _unset(name: str) -> Key:
    """A variant of LoRA that is not merged: absent, false or empty."""

    def accept(value: Any) -> None:
        if value:
            raise ValueError

    return Key(name, "unset: this variant of LoRA is not supported", accept, default=None)


CONFIG = {
    "peft_type": choice("kind", {"LORA": "lora"}),
    "task_type": choice("task", TASKS, default=None),
    "r": integer("rank", *RANK),
    "lora_alpha": number("alpha", *ALPHA),
    "rank_pattern": _by_module("ranks", integer("rank", *RANK)),
    "alpha_pattern": _by_module("alphas", number("alpha", *ALPHA)),
    "use_rslora": flag("rank_stabilized", default=False),
    "bias": choice("bias", {"none": "none"}, default="none"),
    # The others change the base model's weights when training starts.
    "init_lora_weights": choice(
        "initialized", dict.fromkeys((True, False, "gaussian", "eva", "orthogonal")), default=None
    ),
    **{
        name: _unset(name)
        for name in (
            "use_dora",
            "use_qalora",
            "use_bdlora",
            "lora_bias",
            "layer_replication",
            "target_parameters",
            "trainable_token_indices",
            "alora_invocation_tokens",
            "arrow_config",
            "megatron_config",
        )
    },
}
NAME = re.compile(r"base_model\.model\.(?P<module>.+?)\.(?:lora_(?P<side>[AB])\.weight|(?P<kind>weight|bias))")

Place = tuple[str, str | None]
"""A parameter of the transformer, and the part of it."""


@dataclass
class Product:
    """What is added to a weight: scale · B A."""

    module: str
    sides: dict[str, StoredTensor]
    """"A" [r, in] and "B" [out, r]."""
    scale: float


class Adapter:
    """The folder of an adapter: adapter_config.json, and adapter_model in safetensors or torch's format."""

    def __init__(self, folder: Path, *, allow_pickle: bool = False) -> None:
        """Raises CheckpointError: what is not LoRA alone, or a tensor that is none of LoRA's, by name."""
        self.file = folder / "adapter_config.json"
        self.config = Config(self.file, CONFIG, read_json(self.file))
        self.weights = Weights(folder, ADAPTER, allow_pickle=allow_pickle)
        self.products: dict[str, Product] = {}
        self.replaced: dict[str, StoredTensor] = {}
        """Whole tensors, as of `modules_to_save`, by their names in the model."""
        for tensor in self.weights.tensors.values():
            self._sort(tensor)
        for module, product in self.products.items():
            if missing := {"A", "B"} - product.sides.keys():
                side = missing.pop()
                raise CheckpointError(
                    f"{self.weights.weights_file}: missing tensor base_model.model.{module}.lora_{side}.weight"
                )
            self._check_rank(product)

    @property
    def task(self) -> str | None:
        """The task of the head it was trained with, where it says so."""
        return self.config["task"]

    def _sort(self, tensor: StoredTensor) -> None:
        name = NAME.fullmatch(tensor.name)
        if name is None or not tensor.numeric:
            raise CheckpointError(f"{tensor.file}: unexpected tensor {tensor.name}")
        module, side = name["module"], name["side"]
        if side is None:
            module = module.removesuffix(".modules_to_save")
            self.replaced[f"{module}.{name['kind']}"] = tensor
        else:
            product = self.products.setdefault(module, Product(module, {}, self._scale(module)))
            product.sides[side] = tensor

    def _of_module(self, patterns: str, module: str, default: str) -> Any:
        """The value of the first pattern that a module's name matches."""
        values = (value for pattern, value in self.config[patterns].items() if pattern.fullmatch(module))
        return next(values, self.config[default])

    def _scale(self, module: str) -> float:
        rank, alpha = self._of_module("ranks", module, "rank"), self._of_module("alphas", module, "alpha")
        return alpha / (math.sqrt(rank) if self.config["rank_stabilized"] else rank)

    def _check_rank(self, product: Product) -> None:
        rank = self._of_module("ranks", product.module, "rank")
        for side, dimension in (("A", 0), ("B", 1)):
            tensor = product.sides[side]
            if len(tensor.shape) != 2 or tensor.shape[dimension] != rank:
                raise CheckpointError(
                    f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)}, "
                    f"{self.file.name} makes its rank {rank}"
                )


class Merged:
    """A Hugging Face checkpoint with an adapter merged into it."""

    format: Literal["huggingface"] = "huggingface"

    def __init__(self, base: Checkpoint, adapter: Adapter, names: Names) -> None:
        """`names` say which names mean the same parameter, and how it is stored.

        Raises CheckpointError: a tensor of the adapter that the base model has no place for, by name.
        """
        self.base, self.adapter = base, adapter
        self.config = base.config
        self.config_file, self.weights_file = base.config_file, base.weights_file
        self.tensors = dict(base.tensors)
        self._replaced: dict[str, StoredTensor] = {}
        self._products: dict[str, Product] = {}
        self._transposed: set[str] = set()
        stored = {names.place(name): name for name in reversed(list(base.tensors))}
        written = names.written_prefix(base)
        for name, tensor in adapter.replaced.items():
            self._replace(name, tensor, names, stored, written)
        for product in adapter.products.values():
            self._add(product, names, stored)

    def _replace(
        self, name: str, tensor: StoredTensor, names: Names, stored: Mapping[Place | None, str], written: str
    ) -> None:
        """Puts a whole tensor in the place of the base model's, with the prefix that its names are written with."""
        if names.find(name) is None:
            raise CheckpointError(f"{tensor.file}: unexpected tensor {tensor.name}")
        place = names.place(name)
        if place is None:  # known and unused
            return
        self.tensors.pop(stored.get(place, ""), None)
        if not is_head(place[0]):
            name = written + name.removeprefix(names.prefix)
        self.tensors[name] = replace(tensor, name=name)
        self._replaced[name] = tensor

    def _add(self, product: Product, names: Names, stored: Mapping[Place | None, str]) -> None:
        """Plans the sum of a product and the weight of its module."""
        a, b, name = product.sides["A"], product.sides["B"], f"{product.module}.weight"
        into, layer = names.find(name) or (None, None)
        if into is None and layer is not None:  # known and unused
            return
        weight = self.tensors.get(stored.get(names.place(name), ""))
        if into is None or weight is None or weight.name in self._products:
            raise CheckpointError(f"{a.file}: unexpected tensor {a.name}: the base model has no tensor {name} for it")
        shape = (a.shape[1], b.shape[0]) if into.transpose else (b.shape[0], a.shape[1])
        if weight.shape != shape:
            raise CheckpointError(
                f"{a.file}: tensors {a.name} and {b.name} are of a weight of shape {list(shape)}, "
                f"the base model's is {list(weight.shape)}"
            )
        self._products[weight.name] = product
        if into.transpose:
            self._transposed.add(weight.name)

    def read(self, tensor: StoredTensor) -> Tensor:
        """One tensor; in float32 where a product is added to it."""
        if tensor.name in self._replaced:
            return self.adapter.weights.read(self._replaced[tensor.name])
        weight = self.base.read(tensor)
        product = self._products.get(tensor.name)
        if product is None:
            return weight
        a, b = (self.adapter.weights.read(product.sides[side]).float() for side in ("A", "B"))
        added = product.scale * (b @ a)
        return weight.float() + (added.t() if tensor.name in self._transposed else added)
