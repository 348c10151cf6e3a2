"""The serving tier: a real `tercet serve` process asked through the SDK over gRPC."""

import functools

from benchmarks.rows import Row, Tier
from benchmarks.serving import arrivals, decoding, embedding, overhead, service, startup, traffic

TIER = Tier(
    rows=(
        Row("serving/embedding", embedding.measure),
        Row("serving/decoding", decoding.measure),
        Row("serving/first answer", startup.measure),
        Row("serving/service, batch calls", service.encoder),
        Row("serving/service, one stream", functools.partial(service.decoder, service.QUICK_STEPS)),
        Row("serving/service, one stream of slow steps", functools.partial(service.decoder, service.SLOW_STEPS)),
        Row("serving/service, latency", service.latency),
        Row("serving/overhead of one text", overhead.one_text),
        Row("serving/overhead of many texts", overhead.many_texts),
        Row("serving/open loop, embeddings", functools.partial(arrivals.steady, traffic.embeddings)),
        Row("serving/open loop, generations", functools.partial(arrivals.steady, traffic.generations)),
        Row("serving/highest rate, embeddings", functools.partial(arrivals.highest_rate, traffic.embeddings)),
        Row("serving/highest rate, generations", functools.partial(arrivals.highest_rate, traffic.generations)),
        Row("serving/five models", arrivals.together),
    ),
    tests=("tests/kernels", "tests/models", "tests/engine", "tests/text", "tests/service", "tests/client"),
)
