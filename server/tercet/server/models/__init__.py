"""Models: an architecture with one checkpoint loaded, run by the engine."""

from tercet.server.models.batch import DecoderBatch, EncoderBatch, KVCache, Rows, Source
from tercet.server.models.errors import CheckpointError
from tercet.server.models.load import load_model
from tercet.server.models.model import Model
from tercet.server.models.spec import TransformerSpec

__all__ = [
    "CheckpointError",
    "DecoderBatch",
    "EncoderBatch",
    "KVCache",
    "Model",
    "Rows",
    "Source",
    "TransformerSpec",
    "load_model",
]
