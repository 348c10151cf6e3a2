"""The peers tier: whatever peer server is installed, on the same workload (`make bench-peers`)."""

import functools

from benchmarks.peers import contests
from benchmarks.peers.servers import EMBEDDERS, GENERATORS
from benchmarks.rows import Row, Tier

TIER = Tier(
    rows=(
        *(Row(f"peers/embedding {peer.name}", functools.partial(contests.embedding, peer)) for peer in EMBEDDERS),
        *(Row(f"peers/generation {peer.name}", functools.partial(contests.generation, peer)) for peer in GENERATORS),
    ),
    tests=("tests/service", "tests/client"),
)
