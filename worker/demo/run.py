"""Runs the demo: starts the stack, submits the jobs, follows them, and stops everything."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batchmill.producer import Client, GenerationJob, Job, ProducerSettings, new_secret
from batchmill.producer.plural import pluralize
from batchmill.worker.local.stack import LocalStack, StackOptions
from batchmill.worker.local.stop_signals import StopSignals
from batchmill.worker.service_errors import (
    ChildFailed,
    ChildMisconfigured,
    DemoFailed,
    DemoInterrupted,
    NoStateFolder,
)
from batchmill.worker.webhooks.local_receiver import LOOPBACK, WebhookReceiver

from .load_samples import LoadSamples
from .outcome import DemoOutcome, JobOutcome, judge_demo
from .prompts import demo_prompts
from .view import DemoView

_SERVED_NAME = "demo"
_POLL_INTERVAL_S = 0.1
#: Seconds that webhooks have after the last job, even beyond the time limit.
_WEBHOOK_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Options of `batchmill demo`."""

    time_limit_s: float
    flower_port: int | None
    with_flower: bool
    gateway_port: int | None
    with_gateway: bool
    as_json: bool


def run_demo(options: DemoOptions) -> bool:
    """Start everything in a private folder, run the jobs, check the webhooks and show the outcome.

    Returns:
        True if every job completed and every webhook arrived with a valid signature. Otherwise the
        folder with the logs is kept, unless the demo was interrupted.

    Raises:
        BrokerError: the embedded broker cannot run.
        DemoInterrupted: a signal came.
        DemoFailed: a child could not start.
    """
    # A short name, because the path of a unix socket is limited.
    try:
        folder = Path(tempfile.mkdtemp(prefix="batchmill-demo-"))
    except OSError as error:
        raise NoStateFolder(f"{error.strerror or error}; set TMPDIR to a writable folder") from None
    view = DemoView(as_json=options.as_json)
    try:
        with WebhookReceiver() as receiver:
            outcome = _Demo(options, folder, view, receiver).run()
    except (DemoInterrupted, KeyboardInterrupt):
        view.close()
        shutil.rmtree(folder)
        raise
    except BaseException:
        view.close()
        view.say(f"logs are kept in {folder}/logs")
        raise
    view.show_outcome(outcome)
    if outcome.passed:
        shutil.rmtree(folder)
    else:
        view.say(f"logs are kept in {folder}/logs")
    return outcome.passed


class _Demo:
    """One run of the demo: its stack, receiver and jobs."""

    def __init__(
        self,
        options: DemoOptions,
        folder: Path,
        view: DemoView,
        receiver: WebhookReceiver,
    ) -> None:
        self._deadline_s = time.monotonic() + options.time_limit_s
        self._view = view
        self._receiver = receiver
        self._secret = new_secret()
        self._samples = LoadSamples()
        self._model = os.environ.get("BATCHMILL_MODEL") or "demo"
        self._stack = LocalStack(self._stack_options(options, folder), view.say)
        self._signals = StopSignals(
            (signal.SIGTERM, signal.SIGINT, signal.SIGHUP), on_second=self._stack.kill
        )

    def run(self) -> DemoOutcome:
        """Start everything, follow the jobs and judge them; always stop the children."""
        with self._signals:
            try:
                self._stack.start()
                self._view.show_stack(self._stack, self._model, self._receiver.url)
                self._wait_until_ready()
                with self._client() as client:
                    jobs = self._submit(client)
                    self._follow_jobs(client, jobs)
                    return self._judge(client, jobs)
            finally:
                self._view.progress("stopping")
                self._stack.stop()
                self._view.close()

    def _wait_until_ready(self) -> None:
        phases = self._stack.start_phases()

        def progress() -> None:
            self._raise_if_interrupted()
            phase = phases.update()
            self._view.progress(phases.line, changed=phase)

        try:
            self._stack.wait_until_ready(timeout_s=self._left_s(), progress=progress)
        except ChildMisconfigured:
            raise
        except ChildFailed as error:
            raise DemoFailed(str(error)) from error

    def _submit(self, client: Client) -> list[Job]:
        jobs = [
            GenerationJob.model_validate(
                {
                    "model": _SERVED_NAME,
                    "messages": prompt.messages,
                    "max_tokens": prompt.max_tokens,
                    "temperature": 0.0,
                    "webhook": f"{self._receiver.url}/hook",
                    **prompt.structure,
                }
            )
            for prompt in demo_prompts()
        ]
        return client.submit_many(jobs)

    def _follow_jobs(self, client: Client, jobs: Sequence[Job]) -> None:
        """Show progress until all jobs have ended and their webhooks are here, or time is up."""
        unfinished = {job.id for job in jobs}
        num_tokens = dict.fromkeys(unfinished, 0)
        jobs_done_s: float | None = None
        while True:
            self._raise_if_interrupted()
            self._stack.restart_dead_children()
            for job_id in sorted(unfinished):
                status = client.status(job_id)
                num_tokens[job_id] = status.output_tokens
                if status.state.is_terminal:
                    unfinished.discard(job_id)
            self._samples.add(self._stack.ready_worker())
            num_webhooks = len({r.headers.get("webhook-id") for r in self._receiver.requests})
            self._view.progress(
                f"{len(jobs) - len(unfinished)} of {pluralize(len(jobs), 'job')} done, "
                f"{pluralize(sum(num_tokens.values()), 'token')}, "
                f"{self._samples.num_running} running, {pluralize(num_webhooks, 'webhook')}"
            )
            now_s = time.monotonic()
            if not unfinished and jobs_done_s is None:
                jobs_done_s = now_s
            if jobs_done_s is not None and num_webhooks >= len(jobs):
                return
            grace_ends_s = 0.0 if jobs_done_s is None else jobs_done_s + _WEBHOOK_GRACE_S
            if now_s > max(self._deadline_s, grace_ends_s):
                return
            time.sleep(_POLL_INTERVAL_S)

    def _judge(self, client: Client, jobs: Sequence[Job]) -> DemoOutcome:
        outcomes = [
            JobOutcome.of_job(client, job, prompt)
            for job, prompt in zip(jobs, demo_prompts(), strict=True)
        ]
        return judge_demo(outcomes, self._receiver.requests, self._secret, self._samples)

    def _client(self) -> Client:
        settings = ProducerSettings(
            webhook_allow_http=True,
            webhook_allow_ports=(str(self._receiver.port),),
            webhook_allow_networks=(LOOPBACK,),
            model=_SERVED_NAME,
        )
        return Client(self._stack.broker_url, settings=settings)

    def _stack_options(self, options: DemoOptions, folder: Path) -> StackOptions:
        return StackOptions(
            state_dir=folder,
            socket_path=folder / "broker.sock",
            environment={
                "BATCHMILL_RUNTIME_DIR": str(folder),
                "BATCHMILL_SERVED_MODEL_NAME": _SERVED_NAME,
                "BATCHMILL_HEARTBEAT_INTERVAL_S": "0.2",  # the figures are sampled from heartbeats
                "BATCHMILL_WEBHOOK_SECRET": self._secret,
                "BATCHMILL_WEBHOOK_ALLOW_HTTP": "true",
                "BATCHMILL_WEBHOOK_ALLOW_PORTS": str(self._receiver.port),
                "BATCHMILL_WEBHOOK_ALLOW_NETWORKS": LOOPBACK,
                "BATCHMILL_WEBHOOK_POLL_INTERVAL_S": "0.1",
                "BATCHMILL_LOG_FORMAT": "json",
            },
            flower_port=options.flower_port,
            with_flower=options.with_flower,
            gateway_port=options.gateway_port,
            with_gateway=options.with_gateway,
        )

    def _left_s(self) -> float:
        return max(0.0, self._deadline_s - time.monotonic())

    def _raise_if_interrupted(self) -> None:
        if self._signals.received:
            raise DemoInterrupted("interrupted")
