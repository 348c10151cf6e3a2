"""A conversation that appears as it is generated, and survives bad turns.

    python examples/chat.py

Asks the server at TERCET_TARGET, else 127.0.0.1:50051; any model with a chat template will do. Ctrl-D ends it.
"""

import os
import sys

from tercet.client import Client, TercetError


def main() -> None:
    """Reads lines and prints answers until the input ends."""
    messages: list[dict[str, str]] = []
    with Client(os.environ.get("TERCET_TARGET", "127.0.0.1:50051")) as client:
        for line in sys.stdin:
            messages.append({"role": "user", "content": line.strip()})
            answer = ""
            try:
                for piece in client.stream(messages, max_new_tokens=200):
                    print(piece.text, end="", flush=True)
                    answer += piece.text
            except TercetError as error:
                print(error, file=sys.stderr)
                messages.pop()
                continue
            print()
            messages.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    main()
