"""Many prompts at once: a line of stdin each, answered in order, refused ones named.

    printf 'kernel\nencoder\n' | python examples/many.py pronounce

Asks the server at TERCET_TARGET, else 127.0.0.1:50051. The server batches what arrives together, so this is far faster
than one prompt after the other.
"""

import asyncio
import os
import sys

from tercet.client import AsyncClient, TercetError

AT_ONCE = 64


async def main(model: str | None, prompts: list[str]) -> None:
    """Prints each prompt with its continuation."""
    gate = asyncio.Semaphore(AT_ONCE)

    async with AsyncClient(os.environ.get("TERCET_TARGET", "127.0.0.1:50051")) as client:

        async def answer(prompt: str) -> str:
            async with gate:
                try:
                    return (await client.generate(prompt, model=model, temperature=0)).text
                except TercetError as error:
                    return f"! {error.message}"

        for prompt, text in zip(prompts, await asyncio.gather(*map(answer, prompts)), strict=True):
            print(f"{prompt}\t{text}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None, sys.stdin.read().splitlines()))
