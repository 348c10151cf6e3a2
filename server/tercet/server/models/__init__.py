"""Models: an architecture with one checkpoint loaded, run by the engine."""

from tercet.server.models.batch import DecoderBatch, EncoderBatch, KVCache, Rows
from tercet.server.models.errors import CheckpointError
from tercet.server.models.spec import TransformerSpec

__all__ = ["CheckpointError", "DecoderBatch", "EncoderBatch", "KVCache", "Rows", "TransformerSpec"]
