"""The serving tier: a real `tercet serve` process asked through the SDK over gRPC."""

from benchmarks.rows import Row, Tier
from benchmarks.serving import decoding, embedding, overhead, startup

TIER = Tier(
    rows=(
        Row("serving/embedding", embedding.measure),
        Row("serving/decoding", decoding.measure),
        Row("serving/first answer", startup.measure),
        Row("serving/overhead of one text", overhead.one_text),
        Row("serving/overhead of many texts", overhead.many_texts),
    ),
    tests=("tests/kernels", "tests/models", "tests/engine", "tests/text", "tests/service", "tests/client"),
)
