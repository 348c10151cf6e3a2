"""The messages between an engine, the supervisor that started it and the front ends that ask it, and nothing else.

The engine connects to the supervisor, and the front ends to the engine, over Unix sockets in a folder of mode 0700 that
the supervisor made; `frames` carries the messages. End of file is the death of the other side. Every message of an
engine bears the incarnation it was started with, so that one of a dead engine is never taken for its successor's.

The front end never imports torch, the engine never imports grpc: this module imports neither.
"""

from tercet.server.wire.answers import (
    Answers,
    CacheCounts,
    Cached,
    Candidates,
    Embedding,
    Failed,
    Family,
    FinishReason,
    FromEngine,
    Loading,
    ModelInfo,
    Output,
    Phase,
    Prediction,
    Ready,
    Rejected,
    Scored,
    StepResult,
    StepStats,
    ToFrontEnd,
    TokenLogprob,
    Tokens,
    Welcome,
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
    "Answers",
    "CacheCounts",
    "Cached",
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
    "Output",
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
    "ToFrontEnd",
    "TokenLogprob",
    "Tokens",
    "Welcome",
]
