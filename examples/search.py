"""Semantic search: the lines of a file that mean most nearly what you ask.

    python examples/search.py "how do I install it?" README.md

Asks the server at TERCET_TARGET, else 127.0.0.1:50051; any model that embeds will do.
"""

import os
import sys
from pathlib import Path

from tercet.client import Client


def main(query: str, file: str, best: int = 5) -> None:
    """Prints the lines with the highest cosine similarity."""
    lines = [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    with Client(os.environ.get("TERCET_TARGET", "127.0.0.1:50051")) as client:
        vectors = client.embed([query, *lines], normalize=True, truncate=True)  # [1 + lines, embedding size]
    cosines = vectors[1:] @ vectors[0]
    for index in (-cosines).argsort()[:best]:
        print(f"{cosines[index]:.3f}  {lines[index]}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
