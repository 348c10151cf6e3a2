"""The command: reads a checkpoint twice, compares, and says what it found.

Exit codes: 0 if all is within the tolerance; 1 if something is not; 2 for what can't be compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tercet.server import config
from tercet.server.budget import BudgetError, plan
from tercet.server.machine import DeviceError
from tercet.server.sources import SourceError, resolve, resolve_adapter

if TYPE_CHECKING:
    from tercet.server.text import TextModel
    from tercet.server.verify.comparison import Finding, Inputs
    from tercet.server.verify.served import Served
    from tercet.server.wire import EngineSettings

# Of several lengths, scripts and kinds.
TEXTS = (
    "The river was low that summer.",
    "In 1843 she wrote a program for a machine that did not exist; it would have computed Bernoulli numbers.",
    "Ja.",
    "Ein Zug fährt um 7:45 Uhr von Zürich nach Genf, und niemand steigt ein.",
    "def area(radius):\n    return 3.14159 * radius ** 2\n",
    "What is the difference between a cache and a buffer? Both hold data for a while, but a cache keeps what was used "
    "so that it need not be fetched again, and a buffer keeps what has come so that it need not be taken at once.",
    "東京は日本の首都です。",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen",
)
NAME = "verify"

Source = Annotated[str, typer.Argument(help="A Hugging Face folder, a .gguf file or a hub id; +ADAPTER for LoRA.")]
Texts = Annotated[Path | None, typer.Option("--texts", exists=True, dir_okay=False, help="Texts, one a line.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Tokens to generate after each text.")]
Tolerance = Annotated[
    float | None, typer.Option(min=0, help="Largest relative error; else as the precision explains: 1e-4 in float32.")
]


def verify(
    source: Source,
    texts: Texts = None,
    dtype: Annotated[str, typer.Option(help="Precision of Tercet; the reference's is float32.")] = "float32",
    device: Annotated[str, typer.Option(help="Where Tercet runs: auto, cpu, cuda or cuda:N.")] = "auto",
    kernels: Annotated[str, typer.Option(help="Implementation of the kernels: auto, triton, cpu, reference.")] = "auto",
    layout: Annotated[str, typer.Option(help="Layout of batches: auto, padded, packed.")] = "auto",
    max_new_tokens: NewTokens = 32,
    tolerance: Tolerance = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read pytorch_model.bin.")] = False,
) -> None:
    """Compare a checkpoint's numbers, tokens and speed in Tercet with transformers'."""
    flags: dict[str, Any] = {"dtype": dtype, "device": device, "kernels": kernels, "layout": layout}
    flags["allow_pickle"] = allow_pickle or None
    flags["prefix_cache"] = False  # every run computes everything, so that their times can be compared
    try:
        settings = config.load(flags, [f"{NAME}={source}"], None)
        (model,) = settings.models
        (engine,) = plan(settings, {NAME: resolve(model)}, {NAME: resolve_adapter(model)})
    except (config.ConfigError, SourceError, DeviceError, BudgetError) as error:
        raise _refuse(error) from None
    lines = texts.read_text(encoding="utf-8").splitlines() if texts else TEXTS
    findings = _compare(engine, [line for line in lines if line.strip()], max_new_tokens, tolerance)
    raise typer.Exit(int(any(finding.failed for finding in findings)))


def _compare(engine: EngineSettings, lines: list[str], new_tokens: int, tolerance: float | None) -> list[Finding]:
    """Prints each finding as it is found."""
    # Imported here, that help and refusals come at once.
    from tercet.server.engine.loading import StartError
    from tercet.server.engine.memory import TooLargeError
    from tercet.server.models import CheckpointError
    from tercet.server.text import CheckpointTextError, load_text_model
    from tercet.server.verify import comparison
    from tercet.server.verify.served import Served, VerifyError

    try:
        from tercet.server.verify.reference import Reference
    except ModuleNotFoundError as error:
        raise _refuse(f"verify needs {error.name}: pip install 'tercet[server,verify]'") from None
    source = Path(engine.source)
    try:
        text = load_text_model(source)
        served = Served(engine)
        reference = Reference(source, served.info.family, adapter=Path(engine.adapter) if engine.adapter else None)
        inputs = _inputs(served, text, lines, new_tokens)
        info = served.info
        limit = comparison.TOLERANCES[info.dtype] if tolerance is None else tolerance
        typer.echo(f"{info.architecture}, {info.family}, {reference.name}: {', '.join(info.tasks)}")
        typer.echo(f"{info.dtype} on {info.device} against float32 on cpu")
        if info.quantization_error is not None:
            typer.echo(f"quantized weights differ by {info.quantization_error:.1e} of their norm")
        findings = [_say(_tokenizers(text, reference, lines))]
        findings.append(_say(comparison.hidden_states(served, reference, inputs, limit)))
        if info.tasks != ["embed"]:
            findings.append(_say(comparison.outputs(served, reference, inputs, limit)))
        if "generate" in info.tasks:
            findings.append(_say(comparison.tokens(served, reference, inputs, limit)))
        findings.append(_say(comparison.speed(served, reference, inputs)))
    except (CheckpointError, CheckpointTextError, TooLargeError, StartError, VerifyError) as error:
        raise _refuse(error) from None
    return findings


def _inputs(served: Served, text: TextModel, lines: list[str], new_tokens: int) -> Inputs:
    """The texts as token ids, cut to what the model takes beside the tokens to generate."""
    from tercet.server.verify.comparison import Inputs

    longest, family = served.info.max_length, served.info.family
    start = list(text.generation.decoder_start_ids) if family == "seq2seq" else []
    room = max(2, longest - (new_tokens if family == "decoder" else len(start)))
    ids = [encoded.truncated(room).ids for encoded in text.tokenizer.encode_batch(lines)]
    return Inputs([each for each in ids if len(each) > 1], start, min(new_tokens, longest - max(2, len(start))))


def _tokenizers(text: TextModel, reference: Any, lines: list[str]) -> Finding:
    """Token ids of every text; a tokenizer that transformers can't make is no failure of ours."""
    from tercet.server.verify.comparison import Finding

    try:
        expected = reference.tokenize(lines)
    except Exception as error:  # transformers' own, of any kind
        return Finding("token ids", f"not compared: transformers says {str(error).splitlines()[0]}")
    ours = [encoded.ids for encoded in text.tokenizer.encode_batch(lines)]
    wrong = [i + 1 for i, (left, right) in enumerate(zip(ours, expected, strict=True)) if left != right]
    said = f"{len(lines) - len(wrong)} of {len(lines)} texts agree" + (f"; not text {wrong[0]}" if wrong else "")
    return Finding("token ids", said, failed=bool(wrong))


def _say(finding: Finding) -> Finding:
    typer.echo(f"{'FAILED' if finding.failed else 'ok':8}{finding.what:20}{finding.said}")
    return finding


def _refuse(error: object) -> typer.Exit:
    typer.echo(f"tercet: {' '.join(str(error).split())}", err=True)
    return typer.Exit(2)
