"""The engine's unfinished requests: their trackers, deadlines, samples and pending outputs."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from batchmill.engine.request.outputs import FinishReason, RequestFailure, RequestOutput
from batchmill.engine.request.request import Request
from batchmill.engine.scheduling.scheduled_batch import VerifiedDrafts
from batchmill.engine.scheduling.scheduler import Scheduler

from .output_tracker import OutputTracker
from .parallel_sampling import SampleGroup
from .stats import StatsCounter


class UnfinishedRequests:
    """Owns the trackers of all unfinished requests, and schedules and unschedules them.

    Invariant: a tracker stays here until its last output has been taken. If it is scheduled
    (`is_scheduled`), the scheduler has its request.
    """

    def __init__(self, scheduler: Scheduler, counter: StatsCounter) -> None:
        self._scheduler = scheduler
        self._counter = counter
        self._trackers: dict[str, OutputTracker] = {}
        # Deadlines as `time.monotonic()`, of the requests that have one.
        self._deadlines: dict[str, float] = {}
        # Requests with several samples, by request id; each sample has a tracker as well.
        self._groups: dict[str, SampleGroup] = {}
        # The same groups, by the id of each sample.
        self._group_by_sample: dict[str, SampleGroup] = {}
        # Requests with something to report at the end of the step; used as an ordered set.
        self._to_report: dict[OutputTracker, None] = {}

    def __len__(self) -> int:
        return len(self._trackers)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._trackers or request_id in self._groups

    def add(self, trackers: Sequence[OutputTracker], *, deadline_s: float | None = None) -> None:
        """Add one prepared request and schedule its first sample; the others may be held.

        Args:
            trackers: One per sample.
            deadline_s: Seconds from now, after which `abort_overdue` ends it. None is never.
        """
        first = trackers[0]
        request_id = first.request.request_id
        if len(trackers) > 1:
            group = self._groups[request_id] = SampleGroup(request_id, trackers)
            self._group_by_sample |= {each.request.request_id: group for each in trackers}
        for tracker in trackers:
            self._trackers[tracker.request.request_id] = tracker
        self._schedule(first)
        if deadline_s is not None:
            self._deadlines[request_id] = time.monotonic() + deadline_s

    def append_tokens(
        self,
        requests: Sequence[Request],
        token_ids: Sequence[int | None],
        discarded: Collection[Request],
    ) -> list[OutputTracker]:
        """Append each new token to its request's output, and unschedule finished requests.

        Args:
            requests: The requests that the tokens belong to.
            token_ids: One per request; None if there is none.
            discarded: Requests whose token does not count.

        Returns:
            Unfinished requests that got no token: the caller has to end them.
        """
        failed: list[OutputTracker] = []
        trackers, to_report, num_generated = self._trackers, self._to_report, 0
        for request, token_id in zip(requests, token_ids, strict=True):
            if discarded and request in discarded:
                continue
            if request.is_guide:
                continue  # its token is that of the request that it guides
            tracker = trackers[request.request_id]
            to_report[tracker] = None
            if tracker.finish_reason is not None:
                # It had finished before, and this step only computed its scores: drop the token.
                self.unschedule(tracker)
            elif token_id is None:
                failed.append(tracker)
            else:
                num_generated += request.pooling is None
                if tracker.append_token(token_id):
                    self.unschedule(tracker)
        self._counter.num_generated_tokens += num_generated
        return failed

    def append_accepted_drafts(
        self, drafts: Sequence[VerifiedDrafts], discarded: Collection[Request]
    ) -> None:
        """Append the tokens after each first one, until their request finishes.

        Args:
            drafts: The outcome of a step's draft tokens; `append_tokens` got the first tokens.
            discarded: Requests whose tokens do not count.
        """
        for each in drafts:
            source = each.item.draft_source
            assert source is not None, "draft tokens have a source"
            self._counter.num_drafts_by_source[source] += len(each.item.draft_token_ids)
            if each.item.request in discarded:
                continue
            tracker = self._trackers[each.item.request.request_id]
            for token_id in each.token_ids[1:]:
                if tracker.finish_reason is not None:
                    break
                self._counter.num_accepted_by_source[source] += 1
                self._counter.num_generated_tokens += 1
                if tracker.append_token(token_id):
                    self.unschedule(tracker)

    def tracker_of(self, request: Request) -> OutputTracker:
        """Return the tracker of an unfinished request."""
        return self._trackers[request.request_id]

    def fail(
        self, tracker: OutputTracker, error: RequestFailure, *, is_kv_finite: bool = True
    ) -> None:
        """End a request with an error; see `Scheduler.finish` for `is_kv_finite`."""
        tracker.finish(FinishReason.ERROR, error)
        self.unschedule(tracker, is_kv_finite=is_kv_finite)
        self._to_report[tracker] = None

    def abort(self, request_id: str, error: RequestFailure | None = None) -> bool:
        """End all samples of a request early; return False if none of them is unfinished."""
        group, tracker = self._groups.get(request_id), self._trackers.get(request_id)
        samples = group.trackers if group is not None else [] if tracker is None else [tracker]
        unfinished = [each for each in samples if each.finish_reason is None]
        for each in unfinished:
            each.finish(FinishReason.ABORT, error)
            self.unschedule(each)
            self._to_report[each] = None
        return bool(unfinished)

    def abort_overdue(self) -> None:
        """Abort the requests whose deadline has passed."""
        if not self._deadlines:
            return
        now = time.monotonic()
        for request_id in [each for each, at in self._deadlines.items() if now >= at]:
            message = "the deadline passed before the request was done"
            self.abort(request_id, RequestFailure("deadline_exceeded", message))

    def unschedule(self, tracker: OutputTracker, *, is_kv_finite: bool = True) -> None:
        """Remove a request from the scheduler if it is there; see `Scheduler.finish`."""
        if tracker.is_scheduled:
            self._scheduler.finish(tracker.request, is_kv_finite=is_kv_finite)
            tracker.is_scheduled = False

    def take_outputs(self) -> list[RequestOutput]:
        """Return what there is to report, once, and remove the finished requests."""
        outputs = []
        groups: dict[str, SampleGroup] = {}
        to_report, self._to_report = self._to_report, {}
        now_s = time.monotonic()
        for tracker in to_report:
            output = tracker.take_output(now_s)
            if output.finish_reason is not None:
                self._counter.count_finished(output)
                del self._trackers[output.request_id]
            group = self._group_by_sample.get(output.request_id)
            if group is None:
                if output.finished:
                    self._deadlines.pop(output.request_id, None)
                outputs.append(output)
            else:
                group.set_latest(tracker, output)
                groups[group.request_id] = group
        return outputs + [self._take_group_output(group) for group in groups.values()]

    def drop_all(self) -> None:
        """Drop every request without reporting it."""
        for tracker in self._trackers.values():
            self.unschedule(tracker)
        self._trackers.clear()
        self._deadlines.clear()
        self._groups.clear()
        self._group_by_sample.clear()
        self._to_report = {}

    def _schedule(self, tracker: OutputTracker) -> None:
        """Give a request to the scheduler, or only report it if its resumed tokens finished it."""
        if tracker.finish_reason is None or tracker.has_pending_scores:
            self._scheduler.add(tracker.request)
            tracker.is_scheduled = True
        else:
            self._to_report[tracker] = None

    def _take_group_output(self, group: SampleGroup) -> RequestOutput:
        for tracker in group.take_unheld():
            # A sample that was aborted while it was held has been reported already.
            if tracker.request.request_id in self._trackers:
                self._schedule(tracker)
        output = group.take_output()
        if output.finished:
            del self._groups[group.request_id]
            for tracker in group.trackers:
                del self._group_by_sample[tracker.request.request_id]
            self._deadlines.pop(group.request_id, None)
        return output
