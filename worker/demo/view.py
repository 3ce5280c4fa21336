"""What the demo shows: a live line on a terminal, plain lines elsewhere, or one JSON value."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from batchmill.worker.local.stack import LocalStack
from batchmill.worker.terminal import print_json, print_table

from .outcome import DemoOutcome, Figures, JobOutcome

#: Seconds between progress lines where there is no terminal.
_LINE_INTERVAL_S = 2.0
_TITLE_CHARS, _ANSWER_CHARS = 44, 100


class DemoView:
    """Writes for people to stdout, or with JSON only the end there and the way on stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(stderr=as_json, highlight=False)
        self._live: Live | None = None
        self._shown_at_s = 0.0
        self._shown = ""

    def say(self, line: str) -> None:
        """Write one line, above the live one."""
        self._console.print(Text(line), soft_wrap=True)

    def started(self, stack: LocalStack, model: str, receiver_url: str) -> None:
        """Say what runs."""
        self.say(f"model     {model}")
        self.say(f"broker    {stack.broker_url} (embedded, for this demo only)")
        self.say(f"receiver  {receiver_url} (webhooks come here)")
        if stack.flower_url is not None:
            self.say(f"flower    {stack.flower_url} (while the demo runs; read-only)")
        self.say(f"logs      {stack.log_paths['worker'].parent}")

    def progress(self, line: str) -> None:
        """Show where it stands: in place on a terminal, now and then elsewhere."""
        if self._console.is_terminal:
            if self._live is None:
                # Drawn only from here: no thread of its own while children are started.
                self._live = Live(console=self._console, auto_refresh=False, transient=True)
                self._live.start()
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
            return
        now_s = time.monotonic()
        if line != self._shown and now_s - self._shown_at_s >= _LINE_INTERVAL_S:
            self._shown, self._shown_at_s = line, now_s
            self.say(line)

    def close(self) -> None:
        """Take the live line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, outcome: DemoOutcome) -> None:
        """Show answers, one webhook, the figures, and what failed."""
        if self._as_json:
            print_json(_as_json(outcome))
            return
        rows = ((_short(job.title, _TITLE_CHARS), _answer(job)) for job in outcome.jobs)
        print_table(
            "\nAnswers (shortened; a very small model is often wrong)", ("job", "answer"), rows
        )
        self._show_webhook(outcome)
        print_table("\nFigures", ("", ""), _figure_rows(outcome.figures))
        verdict = "passed" if outcome.passed else "FAILED"
        self.say(
            f"\n{verdict}: {outcome.figures.num_completed} of {outcome.figures.num_jobs} jobs "
            f"completed, {outcome.num_webhooks_verified} webhooks verified"
        )
        for failure in outcome.failures:
            self.say(f"  {failure}")
        sys.stdout.flush()

    def _show_webhook(self, outcome: DemoOutcome) -> None:
        if outcome.webhook is None or outcome.event is None:
            return
        self.say("\nA webhook as it was received")
        self.say(f"  POST {outcome.webhook.path}")
        for name, value in outcome.webhook.headers.items():
            self.say(f"  {name}: {value}")
        self.say(f"  {outcome.webhook.body.decode()}")
        self.say(f"  signature verified: {outcome.event.type}, id {outcome.event.id}")


def _figure_rows(figures: Figures) -> Sequence[tuple[str, str]]:
    return [
        ("jobs", f"{figures.num_completed} of {figures.num_jobs} completed"),
        ("output tokens", str(figures.num_output_tokens)),
        ("tokens/s", _number(figures.tokens_per_s, "{:.1f}")),
        ("mean batch size", _number(figures.mean_batch_size, "{:.1f}")),
        ("time to first token, p50", _number(figures.ttft_p50_s, "{:.3f} s")),
        ("KV cache use, peak", _number(figures.peak_kv_use, "{:.1%}")),
    ]


def _number(value: float | None, form: str) -> str:
    return "not measured" if value is None else form.format(value)


def _answer(job: JobOutcome) -> str:
    if job.result is None:
        return f"FAILED: {job.failure}"
    return _short(job.result.text, _ANSWER_CHARS)


def _short(text: str, num_chars: int) -> str:
    """One line, cut in the middle of nowhere but marked."""
    line = " ".join(text.split())
    return line if len(line) <= num_chars else line[: num_chars - 1] + "…"


def _as_json(outcome: DemoOutcome) -> dict[str, Any]:
    webhook = outcome.webhook
    return {
        "passed": outcome.passed,
        "failures": list(outcome.failures),
        "figures": asdict(outcome.figures),
        "num_webhooks_verified": outcome.num_webhooks_verified,
        "webhook": None
        if webhook is None
        else {"headers": dict(webhook.headers), "body": webhook.body.decode()},
        "answers": [
            {
                "id": job.job_id,
                "title": job.title,
                "text": None if job.result is None else job.result.text,
            }
            for job in outcome.jobs
        ],
    }
