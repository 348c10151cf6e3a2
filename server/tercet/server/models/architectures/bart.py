"""BART (Lewis et al., 2019): post-norm seq2seq with learned positions and normed embeddings."""

from __future__ import annotations

from functools import partial

from tercet.server.models.architectures import bart_kin
from tercet.server.models.architectures.architecture import Architecture
from tercet.server.models.checkpoint.config import integer

BART = Architecture(
    name="bart",
    heads=bart_kin.heads("Bart"),
    config=bart_kin.CONFIG | {"num_labels": integer("labels", 1, 1_000_000, default=3)},
    weights=bart_kin.weights("norm_after"),
    spec=partial(bart_kin.spec, norm_place="post", embedding_norm=True),
    prefix="model.",
)
