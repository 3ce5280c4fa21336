"""The texts of a real engine: measured before the faults, for each different job of a plan."""

from __future__ import annotations

from collections.abc import Callable

from batchmill.producer import Client

from .oracle import Expect
from .plan import Plan
from .planned_jobs import PlannedJob
from .site import Site
from .traffic import TAG

_TIMEOUT_S = 600.0


def measure_texts(site: Site, plan: Plan, say: Callable[[str], None]) -> Expect:
    """Run each different job once, without faults, and return the function that knows its text."""
    different = {(job.prompt, job.max_tokens) for _, job in plan.jobs}
    say(f"measuring the texts of {len(different)} different jobs")
    texts: dict[tuple[str, int], str] = {}
    with Client(site.observer_link.url, settings=site.client_settings) as client:
        handles = {
            pair: client.submit(
                prompt=pair[0], max_tokens=pair[1], temperature=0.0, ignore_eos=True, tags=[TAG]
            )
            for pair in sorted(different)
        }
        for pair, handle in handles.items():
            texts[pair] = handle.result(_TIMEOUT_S).text
        client.forget_where(tag=TAG)

    def expect(job: PlannedJob) -> str:
        return texts[job.prompt, job.max_tokens]

    return expect
