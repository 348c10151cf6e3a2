"""Many prompts at once: a line of stdin each, answered in order, refused ones named.

    printf 'kernel\nencoder\n' | python examples/many.py pronounce

Asks the server at TERCET_TARGET, else 127.0.0.1:50051. All prompts share one stream, and the server batches what
arrives together, so this is far faster than one prompt after the other.
"""

import os
import sys

from tercet.client import Client, TercetError


def main(model: str | None, prompts: list[str]) -> None:
    """Prints each prompt with its continuation."""
    with Client(os.environ.get("TERCET_TARGET", "127.0.0.1:50051")) as client:
        answers = dict(client.generate_many(prompts, model=model, temperature=0, errors="return"))
    for number, prompt in enumerate(prompts):
        answer = answers[number]
        print(f"{prompt}\t{f'! {answer.message}' if isinstance(answer, TercetError) else answer.text}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None, sys.stdin.read().splitlines())
