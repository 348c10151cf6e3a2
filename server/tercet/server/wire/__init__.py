"""The messages between the service (front end) and an engine, and nothing else.

The engine connects to a Unix socket in a directory of mode 0700 that the supervisor made, and `frames` carries the
messages over it. End of file is the death of the other side. Every message of an engine bears the incarnation it was
started with, so that one of a dead engine is never taken for its successor's.

The front end never imports torch, the engine never imports grpc: this module imports neither.
"""

from tercet.server.wire.answers import (
    Candidates,
    Embedding,
    Failed,
    Family,
    FinishReason,
    FromEngine,
    Loading,
    ModelInfo,
    Phase,
    Prediction,
    Ready,
    Rejected,
    Scored,
    StepResult,
    StepStats,
    TokenLogprob,
    Tokens,
)
from tercet.server.wire.requests import (
    Cancel,
    Embed,
    EngineSettings,
    FillMask,
    Generate,
    Pooling,
    Predict,
    Sampling,
    Score,
    Stop,
    ToEngine,
)

__all__ = [
    "Cancel",
    "Candidates",
    "Embed",
    "Embedding",
    "EngineSettings",
    "Failed",
    "Family",
    "FillMask",
    "FinishReason",
    "FromEngine",
    "Generate",
    "Loading",
    "ModelInfo",
    "Phase",
    "Pooling",
    "Predict",
    "Prediction",
    "Ready",
    "Rejected",
    "Sampling",
    "Score",
    "Scored",
    "StepResult",
    "StepStats",
    "Stop",
    "ToEngine",
    "TokenLogprob",
    "Tokens",
]
