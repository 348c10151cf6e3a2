"""From settings to a warm engine."""

from __future__ import annotations

import logging
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from msgspec import structs

from tercet.kernels import dispatch
from tercet.kernels.attention_ops import SPLIT_KV_QUERIES
from tercet.server.engine.engine import Engine
from tercet.server.engine.graphs import CudaGraphs, Graphs
from tercet.server.engine.lanes import Lanes
from tercet.server.engine.memory import batch_tokens, count_pages, encoder_buckets_of, lane_pages, working_bytes
from tercet.server.engine.runner import Runner
from tercet.server.engine.tuning import AUTO_LAYOUT, ENCODER_TOKENS
from tercet.server.engine.validation import limits_of
from tercet.server.logs import fields
from tercet.server.models import load_model
from tercet.server.wire import (
    Embed,
    FillMask,
    Generate,
    Loading,
    ModelInfo,
    Predict,
    Rejected,
    Sampling,
    Score,
    token_ids,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tercet.server.engine.reading import Reading
    from tercet.server.engine.validation import Limits
    from tercet.server.models import Model
    from tercet.server.wire import EngineSettings, Pooling, TokenIds

    Report = Callable[[Loading], None]
    Stage = Literal["weights", "pages", "warm-up"]

log = logging.getLogger(__name__)

REPORT_SECONDS = 0.1
WARM_UP_TOKENS = 8
LONG_TOKENS = SPLIT_KV_QUERIES + WARM_UP_TOKENS  # of a prompt that another kernel reads
WARM_UP_STEPS = 64  # more than the warm-up requests need
STEPS_BETWEEN = 3  # from one group of them to the next
BEAM_TOKENS = 12  # written while the groups that follow are read
MOST_TEXTS = 32  # that are read at once, to be too many for a graph


class StartError(Exception):
    """An engine that can't start; the message is one line for the user."""


def load_engine(settings: EngineSettings, report: Report) -> tuple[Engine, ModelInfo]:
    """Loads the checkpoint, sizes the page cache, and runs every phase once.

    Raises:
        CheckpointError: the checkpoint can't be loaded.
        TooLargeError: it doesn't fit the engine's share of memory.
        UnsupportedError: the kernels asked for can't run here.
        StartError: the settings can't be served with, or the model fails on a harmless request.
    """
    device = torch.device(settings.device)
    _prepare(settings, device)
    model = load_model(
        Path(settings.source),
        device=device,
        dtype=settings.dtype,
        max_length=settings.max_length,
        adapter=Path(settings.adapter) if settings.adapter else None,
        allow_pickle=settings.allow_pickle,
        progress=_weight_progress(settings, report),
    )
    _check_kernels(model)
    if model.quantization_error is not None:
        log.info("quantized", extra=fields(model=settings.name, dtype="fp8", error=round(model.quantization_error, 5)))
        if device.type == "cpu":
            log.warning("fp8 is slow on a CPU, which computes it for checks", extra=fields(model=settings.name))
    if not settings.max_batch_tokens:
        settings = structs.replace(settings, max_batch_tokens=batch_tokens(model, _l2_bytes(device)))

    report(_loading(settings, "pages", 0, 1))
    on_gpu = device.type != "cpu"
    pages = count_pages(model, settings, working_bytes(model, settings, replays=on_gpu))
    cache = model.new_cache(pages, settings.page_size) if pages else None
    report(_loading(settings, "pages", 1, 1))

    padded = (AUTO_LAYOUT if settings.layout == "auto" else settings.layout) == "padded"
    limits = limits_of(model, settings, pages)
    lanes = Lanes(settings.max_rows, *lane_pages(model, settings), device)
    graphs = Graphs(CudaGraphs()) if on_gpu else None
    runner = Runner(
        model,
        cache,
        lanes,
        max_rows=settings.max_rows,
        padded=padded,
        graphs=graphs,
        encoder_buckets=encoder_buckets_of(model, settings),
    )
    # A CPU computes while it launches: there is nothing to overlap.
    engine = Engine(runner, limits, settings, padded=padded, ahead=on_gpu)
    warm_up(
        engine,
        limits,
        lambda done, total: report(_loading(settings, "warm-up", done, total)),
        compiles=on_gpu,
    )
    return engine, _info(model, limits, settings, pages)


def _prepare(settings: EngineSettings, device: torch.device) -> None:
    """What holds for the whole process."""
    torch.set_num_threads(settings.threads)
    dispatch.select(settings.kernels, tf32=settings.dtype == "tf32")
    torch.backends.cuda.matmul.allow_tf32 = settings.dtype == "tf32"
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what Triton launches, and streams and graphs, are of the current one


def _info(model: Model, limits: Limits, settings: EngineSettings, pages: int) -> ModelInfo:
    head = model.spec.head
    return ModelInfo(
        architecture=model.architecture,
        family=model.family,
        tasks=list(limits.tasks),
        max_length=limits.max_length,
        longest_read=limits.longest_read,
        vocab_size=model.vocab_size,
        target_vocab_size=model.target_vocab_size,
        embedding_size=model.embedding_size,
        labels=head.outputs if head and head.task in ("classify", "tag") else 0,
        dtype=settings.dtype if settings.dtype in ("tf32", "fp8") else str(model.dtype).removeprefix("torch."),
        quantization_error=model.quantization_error,
        device=settings.device,
        parameters=model.parameters,
        pages=pages,
        page_size=settings.page_size,
        memory=model.weight_bytes + (pages * model.cache_bytes_per_page(settings.page_size) if pages else 0),
    )


def warm_up(engine: Engine, limits: Limits, progress: Callable[[int, int], None], *, compiles: bool) -> None:
    """Runs harmless requests through every phase. Raises StartError if one of them fails.

    compiles: kernels are compiled when they are first launched, and so those of mixed batches are launched now.
    """
    groups = _mixing(limits) if compiles else iter([[*_harmless(limits)]])
    begun = 0
    for done in range(WARM_UP_STEPS):
        if done == begun + STEPS_BETWEEN or not engine.busy:
            begun = done
            for message in next(groups, []):
                engine.submit(message)
        if not engine.busy:
            progress(WARM_UP_STEPS, WARM_UP_STEPS)
            return
        progress(done, WARM_UP_STEPS)
        for output in engine.step().outputs:
            if isinstance(output, Rejected):
                raise StartError(f"warm-up failed: {output.message}")
    raise StartError(f"warm-up did not end within {WARM_UP_STEPS} steps")


def _mixing(limits: Limits) -> Iterator[list[Reading | Generate]]:
    """Groups of requests, the later ones to be read while a beam search of the first goes on: prompts short and long,
    alone and beside beams, are read by kernels of their own, and so are tokens drawn among one, few and all.
    """
    if "generate" in limits.tasks:
        yield [_prompt(limits, 0, LONG_TOKENS)]
    yield [*_harmless(limits, BEAM_TOKENS)]
    if "generate" in limits.tasks:
        yield [_prompt(limits, 4, WARM_UP_TOKENS, temperature=1.0)]
        yield [_prompt(limits, 5, LONG_TOKENS)]
    yield [*_readings(limits)]


def _readings(limits: Limits) -> Iterator[Reading]:
    """What else is read by kernels of its own: each pooling, a target read whole, a batch that no graph holds."""
    ids = _ids(limits, WARM_UP_TOKENS)
    poolings: tuple[Pooling, ...] = ("mean", "cls", "last", "max")
    for key, (pooling, normalize) in enumerate(product(poolings, (True, False)), 7):
        yield Embed(id=key, token_ids=ids, pooling=pooling, normalize=normalize)
    target = Score(id=15, token_ids=ids, decoder_ids=ids)
    if limits.family == "seq2seq" and limits.refusal(target) is None:
        yield target
    texts = ENCODER_TOKENS[-1] // limits.longest_read + 1
    if limits.family != "decoder" and texts <= MOST_TEXTS:
        for key in range(16, 16 + texts):
            yield Embed(id=key, token_ids=token_ids([0]) * limits.longest_read, pooling="mean", normalize=True)


def _prompt(limits: Limits, key: int, tokens: int, temperature: float = 0.0) -> Generate:
    """Greedy or drawn from all tokens, and nothing of it is found in a cache."""
    ids = _ids(limits, tokens)
    start = ids[: 2 if limits.family == "seq2seq" else 0]
    sampling = Sampling(max_new_tokens=2, temperature=temperature)
    return Generate(id=key, token_ids=ids, decoder_ids=start, cache_salt=f"warm-up {key}", sampling=sampling)


def _ids(limits: Limits, tokens: int) -> TokenIds:
    """So many, or as many as there can be."""
    return token_ids([0]) * max(1, min(tokens, limits.max_length - 2, limits.longest_read))


def _harmless(limits: Limits, beam_tokens: int = 2) -> Iterator[Reading | Generate]:
    ids = _ids(limits, WARM_UP_TOKENS)
    start = ids[: 1 if limits.family == "seq2seq" else 0]
    yield Embed(id=6, token_ids=ids, pooling="mean", normalize=True)
    if "generate" in limits.tasks:
        greedy = Sampling(max_new_tokens=2)
        sampled = Sampling(max_new_tokens=2, temperature=1.0, top_k=2, top_p=0.5, min_p=0.1)
        # The second token is read in each other's pages.
        beams = Sampling(max_new_tokens=min(beam_tokens, limits.max_length - len(start or ids)), num_beams=2)
        for key, sampling in enumerate((greedy, sampled, beams), 1):
            message = Generate(id=key, token_ids=ids, decoder_ids=start, sampling=sampling)
            if sampling is not beams or limits.refusal(message) is None:  # there may be no room for two beams
                yield message
    elif "fill_mask" in limits.tasks:
        yield FillMask(id=1, token_ids=ids, positions=[0], top_k=1)
    elif len(limits.tasks) > 1:
        yield Predict(id=1, token_ids=ids, decoder_ids=start)


def _l2_bytes(device: torch.device) -> int | None:
    """Of a GPU's L2 cache; None on a CPU."""
    return None if device.type == "cpu" else torch.cuda.get_device_properties(device).L2_cache_size


def _check_kernels(model: Model) -> None:
    implementation = dispatch.selected(model.device)
    for stack in model.spec.stacks.values():
        reasons = dispatch.unsupported_reasons(
            "attention", implementation, device=model.device, dtype=model.dtype, head_dim=stack.head_dim
        )
        if reasons:
            raise StartError(f"--kernels {implementation} can't serve this model: {'; '.join(reasons)}")


def _weight_progress(settings: EngineSettings, report: Report) -> Callable[[int, int], None]:
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= REPORT_SECONDS:
            last = now
            report(_loading(settings, "weights", done, total))

    return progress


def _loading(settings: EngineSettings, stage: Stage, done: int, total: int) -> Loading:
    return Loading(incarnation=settings.incarnation, stage=stage, done=done, total=total)
