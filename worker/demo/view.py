"""Output of the demo: a live line on a terminal, plain lines elsewhere, or one JSON value."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from batchmill.worker.local.stack import LocalStack
from batchmill.worker.terminal import may_lose_terminal, print_json, print_table

from .outcome import DemoOutcome, Figures, JobOutcome

#: Seconds between progress lines without a terminal.
_LINE_INTERVAL_S = 2.0
_WIDTH = 100


class DemoView:
    """Writes text to stdout; with JSON, the outcome to stdout and progress to stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(stderr=as_json, highlight=False)
        self._live: Live | None = None
        self._model = ""
        self._shown_at_s = 0.0
        self._shown = ""

    def say(self, line: str) -> None:
        """Write a line above the live one."""
        with may_lose_terminal():
            self._console.print(Text(line), soft_wrap=True)

    def show_stack(self, stack: LocalStack, model: str, receiver_url: str) -> None:
        """Show the model, and the addresses and logs of the stack."""
        self._model = model
        self.say(f"model     {model}")
        self.say(f"broker    {stack.broker_url} (embedded, for this demo only)")
        self.say(f"receiver  {receiver_url} (receives the webhooks)")
        if stack.flower_url is not None:
            self.say(f"flower    {stack.flower_url} (read-only, while the demo runs)")
        if stack.gateway_url is not None:
            self.say(f"gateway   {stack.gateway_url}/v1 (OpenAI's and Anthropic's APIs, as long)")
        self.say(f"logs      {stack.log_paths['worker'].parent}")

    def progress(self, line: str, *, changed: str | None = None) -> None:
        """Show progress: in place on a terminal, otherwise a line every few seconds.

        Args:
            line: the progress.
            changed: without a terminal, this is written instead, each time it has changed.
        """
        if self._console.is_terminal:
            with may_lose_terminal():
                self._show_live(line)
            return
        if changed is not None:
            if changed != self._shown:
                self._shown = changed
                self.say(changed)
            return
        now_s = time.monotonic()
        if line != self._shown and now_s - self._shown_at_s >= _LINE_INTERVAL_S:
            self._shown, self._shown_at_s = line, now_s
            self.say(line)

    def close(self) -> None:
        """Remove the live line."""
        if self._live is not None:
            with may_lose_terminal():
                self._live.stop()
            self._live = None

    def show_outcome(self, outcome: DemoOutcome) -> None:
        """Show the results, one webhook, the figures and the failures."""
        if self._as_json:
            print_json(_as_json(outcome))
            return
        self._show_results(outcome.jobs)
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

    def _show_results(self, jobs: Sequence[JobOutcome]) -> None:
        """Show what was asked and what the model wrote, by kind of task."""
        if self._model == "demo":
            self.say(
                "\nThe demo model is SmolLM2-135M-Instruct, which is very small (135 million\n"
                "parameters): it extracts data and answers simple questions, but it knows little."
            )
        kind = None
        for job in jobs:
            if job.prompt.kind != kind:
                kind = job.prompt.kind
                self.say(f"\n{kind}")
            self.say(_indented(job.prompt.shown, "  ", "  "))
            text = f"FAILED: {job.failure}" if job.result is None else job.result.text
            self.say(_indented(text, "    -> ", "       "))

    def _show_live(self, line: str) -> None:
        if self._live is None:
            # Without auto-refresh there is no extra thread while children are started.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)

    def _show_webhook(self, outcome: DemoOutcome) -> None:
        if outcome.webhook is None or outcome.event is None:
            return
        self.say("\nA webhook as received")
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


def _indented(text: str, first: str, further: str) -> str:
    """Return a text as lines that fit a terminal of 100 characters, without its own line breaks."""
    line = " ".join(text.split())
    return textwrap.fill(line, _WIDTH, initial_indent=first, subsequent_indent=further)


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
                "kind": job.prompt.kind,
                "prompt": job.prompt.shown,
                "text": None if job.result is None else job.result.text,
            }
            for job in outcome.jobs
        ],
    }
