"""The models tier: Tercet's engine in this process against transformers and CTranslate2, without a wire between."""

from benchmarks.models import decoders, decoding, embedding, encoders, host, prefixes, seq2seq, translators
from benchmarks.rows import Row, Tier

TIER = Tier(
    rows=(
        *encoders.ROWS,
        *decoders.ROWS,
        *translators.ROWS,
        Row("models/embedding", embedding.in_process, priority=0),
        Row("models/decoding", decoding.in_process, priority=0),
        Row("models/seq2seq", seq2seq.in_process),
        Row("models/host", host.step),
        Row("models/prefix-cache", prefixes.shared_beginning),
    ),
    tests=("tests/kernels", "tests/models", "tests/engine", "tests/text"),
)
