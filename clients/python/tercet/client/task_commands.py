"""The commands of `tercet` for models with heads."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tercet.client.commands import Json, Lines, Model, Texts, Truncate, print_json, read_prompt, read_texts
from tercet.client.options import connection, provided

if TYPE_CHECKING:
    from tercet.client.sync import Client

TopK = Annotated[int | None, typer.Option(help="The most to show.")]


def show(rows: list[Any], as_json: bool, *fields: str) -> None:
    """Results, a line each: as JSON, or these fields side by side."""
    for row in rows:
        if as_json:
            print_json(asdict(row))
        else:
            cells = (getattr(row, field) for field in fields)
            typer.echo("\t".join(f"{cell:.6f}" if isinstance(cell, float) else str(cell) for cell in cells))


def show_each(texts: list[str], results: list[list[Any]], as_json: bool, *fields: str) -> None:
    """The results of several texts: as JSON a line a text, else under each text if there are several."""
    for text, rows in zip(texts, results, strict=True):
        if as_json:
            print_json({"text": text, "results": [asdict(row) for row in rows]})
            continue
        if len(texts) > 1:
            typer.echo(f"# {text}")
        show(rows, False, *fields)


@provided(client=connection)
def rerank(
    client: "Client",
    query: Annotated[str, typer.Argument(help="What is looked for.")],
    texts: Texts = None,
    file: Lines = None,
    model: Model = None,
    top_k: TopK = None,
    truncate: Truncate = False,
    as_json: Json = False,
) -> None:
    """Order texts by their relevance to a query: score, index and text."""
    found = read_texts(texts, file)
    for ranked in client.rerank(query, found, model=model, top_k=top_k, truncate=truncate):
        if as_json:
            print_json({**asdict(ranked), "text": found[ranked.index]})
        else:
            typer.echo(f"{ranked.score:.6f}\t{ranked.index}\t{found[ranked.index]}")


@provided(client=connection)
def classify(
    client: "Client",
    texts: Texts = None,
    file: Lines = None,
    pair: Annotated[str | None, typer.Option(help="A second text to read with each.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", "-l", help="A label of your own; repeat it.")] = None,
    template: Annotated[str | None, typer.Option(help="With --label: a hypothesis with {} for the label.")] = None,
    multi_label: Annotated[bool, typer.Option("--multi-label", help="With --label: judge each by itself.")] = False,
    model: Model = None,
    top_k: TopK = None,
    truncate: Truncate = False,
    as_json: Json = False,
) -> None:
    """Label texts, by the model's labels or by your own: score and label, the best first."""
    found = read_texts(texts, file)
    inputs = [(text, pair) for text in found] if pair is not None else found
    options: dict[str, Any] = {"labels": label, "template": template, "multi_label": multi_label} if label else {}
    results = client.classify(cast("Any", inputs), model=model, top_k=top_k, truncate=truncate, **options)
    show_each(found, results, as_json, "score", "label")


@provided(client=connection)
def tag(
    client: "Client",
    texts: Texts = None,
    file: Lines = None,
    aggregation: Annotated[str | None, typer.Option(help="none, simple, first, average or max.")] = None,
    stride: Annotated[int | None, typer.Option(help="Read long texts in windows that share so many tokens.")] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Find labelled spans, such as names: label, start, end, score and text."""
    found = read_texts(texts, file)
    results = client.tag(found, aggregation=cast("Any", aggregation), stride=stride, model=model)
    show_each(found, results, as_json, "label", "start", "end", "score", "text")


@provided(client=connection)
def fill_mask(
    client: "Client",
    texts: Texts = None,
    file: Lines = None,
    candidate: Annotated[list[str] | None, typer.Option(help="A token to choose from; repeat it.")] = None,
    model: Model = None,
    top_k: TopK = None,
    as_json: Json = False,
) -> None:
    """Fill the masked tokens of texts: score and candidate, mask by mask."""
    found = read_texts(texts, file)
    results = client.fill_mask(found, targets=candidate or None, top_k=top_k, model=model)
    each = [(text, mask) for text, masks in zip(found, results, strict=True) for mask in masks]
    show_each([text for text, _ in each], [mask for _, mask in each], as_json, "score", "token")


@provided(client=connection)
def answer(
    client: "Client",
    question: Annotated[str, typer.Argument(help="The question.")],
    context: Annotated[str | None, typer.Argument(help="The text that may answer it; - or nothing is stdin.")] = None,
    no_answer: Annotated[bool, typer.Option("--no-answer", help="Allow that the context holds none.")] = False,
    model: Model = None,
    top_k: TopK = None,
    as_json: Json = False,
) -> None:
    """Find the part of a text that answers a question: score, start, end and text."""
    answers = client.answer(question, read_prompt(context), allow_no_answer=no_answer, top_k=top_k, model=model)
    show(answers, as_json, "score", "start", "end", "text")


@provided(client=connection)
def score(
    client: "Client",
    texts: Texts = None,
    file: Lines = None,
    source: Annotated[str | None, typer.Option(help="What a seq2seq model reads first.")] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Tell how likely texts are: perplexity, log probability and tokens."""
    found = read_texts(texts, file)
    results = client.score(found, model=model) if source is None else client.score(source, found, model=model)
    for text, scored in zip(found, results, strict=True):
        if as_json:
            print_json({"text": text, **asdict(scored)})
        else:
            typer.echo(f"{scored.perplexity:.6g}\t{scored.total:.6f}\t{len(scored.token_ids)}\t{text}")
