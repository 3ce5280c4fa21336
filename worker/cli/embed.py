"""`batchmill embed` and `rerank`: vectors and relevance from the command line."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from batchmill.worker.terminal import print_json

from .broker_connection import resolve_broker
from .errors import usage_error
from .options import BrokerUrlOption, JsonOption, TimeoutOption

_EMBED_EPILOG = (
    "Examples:\n\n"
    '  batchmill embed "a mill by the river" "a paper factory" --model minilm\n\n'
    "  cat sentences.txt | batchmill embed --truncate end --json > vectors.json\n\n"
    "For files of many texts, use bulk: lines such as "
    '{"embedding": {"input": "a mill by the river"}}.'
)
_RERANK_EPILOG = (
    'Example:\n\n  batchmill rerank "What drives a mill?" "Water drives it." "Bread is baked."'
)
_Texts = Annotated[
    list[str] | None,
    typer.Argument(help="The texts. Without any, each line of stdin is one."),
]
_Query = Annotated[str, typer.Argument(help="What the documents are ranked by.")]
_Documents = Annotated[
    list[str] | None,
    typer.Argument(help="The documents. Without any, each line of stdin is one."),
]
_Model = Annotated[str | None, typer.Option(help="Name under which workers serve the model.")]
_Pooling = Annotated[
    str | None, typer.Option(help="last, mean or cls. Default: as the model's files say.")
]
_Dimensions = Annotated[
    int | None, typer.Option(help="Keep only the first so many numbers of each vector.")
]
_Normalize = Annotated[
    bool, typer.Option("--normalize/--no-normalize", help="Scale each vector to length 1.")
]
_Truncate = Annotated[
    str | None,
    typer.Option(help="Side of a too long text that is cut: start or end. Default: refuse it."),
]
_Priority = Annotated[str | None, typer.Option(help="high, normal or low.")]
_TopN = Annotated[int | None, typer.Option(help="Print only the best so many.")]


def add_embed_commands(app: typer.Typer) -> None:
    """Add `embed` and `rerank`."""
    app.command("embed", epilog=_EMBED_EPILOG)(embed)
    app.command("rerank", epilog=_RERANK_EPILOG)(rerank)


def embed(
    texts: _Texts = None,
    model: _Model = None,
    pooling: _Pooling = None,
    dimensions: _Dimensions = None,
    normalize: _Normalize = True,
    truncate: _Truncate = None,
    priority: _Priority = None,
    timeout_s: TimeoutOption = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed texts and print one vector per line; with --json, one object with all."""
    from batchmill.producer import Client

    inputs = _texts(texts)
    with Client(resolve_broker(broker_url)) as client:
        found = client.embed(
            inputs,
            pooling=pooling,
            dimensions=dimensions,
            normalize=None if normalize else False,
            truncate=truncate,
            timeout_s=timeout_s,
            **_given(model=model, priority=priority),
        )
    if as_json:
        usage = found.usage.model_dump()
        print_json({"vectors": found.vectors, "usage": usage, "job_ids": list(found.job_ids)})
        return
    for vector in found.vectors:
        print(json.dumps(vector))


def rerank(
    query: _Query,
    documents: _Documents = None,
    model: _Model = None,
    top_n: _TopN = None,
    truncate: _Truncate = None,
    priority: _Priority = None,
    timeout_s: TimeoutOption = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank documents by their relevance to a query, the best first."""
    from batchmill.producer import Client

    texts = _texts(documents)
    with Client(resolve_broker(broker_url)) as client:
        ranking = client.rerank(
            query,
            texts,
            top_n=top_n,
            truncate=truncate,
            timeout_s=timeout_s,
            **_given(model=model, priority=priority),
        )
    if as_json:
        print_json(
            [{"index": each.index, "relevance_score": each.relevance_score} for each in ranking]
        )
        return
    for each in ranking:
        print(f"{each.relevance_score:.4f}  {each.document}")


def _given(**options: str | None) -> Any:
    return {name: value for name, value in options.items() if value is not None}


def _texts(given: list[str] | None) -> list[str]:
    texts = given or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts:
        raise usage_error("there are no texts: give them as arguments, or one per line on stdin")
    return texts
