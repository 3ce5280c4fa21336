"""Spans as tests read them: from OTLP requests that a receiver got, and drawn as a tree."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True, slots=True)
class SeenSpan:
    """One span, as a backend has it."""

    name: str
    trace_id: str
    span_id: str
    #: Empty for a root.
    parent_id: str
    #: Ids of the spans that it links to.
    links: tuple[str, ...]
    service: str
    attributes: dict[str, Any]
    has_failed: bool
    start_ns: int
    end_ns: int

    @property
    def traceparent(self) -> str:
        """The context of the span, without its flags."""
        return f"00-{self.trace_id}-{self.span_id}-"


def read_spans(bodies: Iterable[bytes]) -> list[SeenSpan]:
    """Return the spans in OTLP requests; of several with one id the last one."""
    found: dict[str, SeenSpan] = {}
    for body in bodies:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _attributes(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    seen = _seen(span, service)
                    found[seen.span_id] = seen
    return list(found.values())


def draw_tree(spans: Sequence[SeenSpan]) -> str:
    """Return one trace as text: spans under their parents, in the order of their start."""
    ids = {span.span_id for span in spans}
    lines: list[str] = []

    def draw(span: SeenSpan, indent: str, branch: str, below: str) -> None:
        lines.append(f"{indent}{branch}{_describe(span)}")
        children = sorted(
            (each for each in spans if each.parent_id == span.span_id), key=lambda x: x.start_ns
        )
        for place, child in enumerate(children):
            is_last = place == len(children) - 1
            draw(child, indent + below, *(("└─ ", "   ") if is_last else ("├─ ", "│  ")))

    for root in sorted(
        (each for each in spans if each.parent_id not in ids), key=lambda x: x.start_ns
    ):
        draw(root, "", "", "")
    return "\n".join(lines) + "\n"


def paths_of(tree: str) -> set[str]:
    """Return the paths from the root of a drawn tree to each span, without figures."""
    above: list[str] = []
    found = set()
    for line in tree.splitlines():
        text = line.lstrip("│├└─ ")
        depth = (len(line) - len(text)) // 3
        plain = re.sub(r"\d+\.\d+ s|tokens \d+ to \d+|\d+ tokens", "N", text)
        above[depth:] = [plain]
        found.add(" > ".join(above))
    return found


def _describe(span: SeenSpan) -> str:
    shown = [f"{(span.end_ns - span.start_ns) / 1e9:.2f} s"]
    attributes = span.attributes
    if "batchmill.attempt" in attributes:
        shown.append(f"attempt {attributes['batchmill.attempt']}")
        shown.append(f"{attributes['batchmill.worker']}")
        resumed = attributes["batchmill.attempt.resumed_tokens"]
        shown.append(f"tokens {resumed} to {attributes['batchmill.attempt.output_tokens']}")
        shown.append(attributes["batchmill.attempt.cause"])
    if "batchmill.checkpoint.tokens" in attributes:
        shown.append(f"{attributes['batchmill.checkpoint.tokens']} tokens")
    if "http.response.status_code" in attributes:
        shown.append(str(attributes["http.response.status_code"]))
    return f"{span.name}  [{', '.join(shown)}]"


def _seen(span: Any, service: str) -> SeenSpan:
    return SeenSpan(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        tuple(link.span_id.hex() for link in span.links),
        service,
        _attributes(span.attributes),
        span.status.code == span.status.STATUS_CODE_ERROR,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
