"""The engine's unfinished requests: what each owes, when it is late, and what is to be told."""

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
    """Owns the trackers of all unfinished requests and lets the scheduler know who comes and goes.

    Invariant: a tracker is in the book until its last output has been taken; one that is scheduled
    (`is_scheduled`) is known to the scheduler.
    """

    def __init__(self, scheduler: Scheduler, counter: StatsCounter) -> None:
        self._scheduler = scheduler
        self._counter = counter
        self._trackers: dict[str, OutputTracker] = {}
        # `time.monotonic()` at which requests end unfinished, where they have such a time.
        self._deadlines: dict[str, float] = {}
        # Requests with several samples, by their own id; each sample has a tracker as well.
        self._groups: dict[str, SampleGroup] = {}
        # The group of each such sample, by the sample's id.
        self._group_of: dict[str, SampleGroup] = {}
        # Requests with something to report at the end of the step; used as an ordered set.
        self._with_news: dict[OutputTracker, None] = {}

    def __len__(self) -> int:
        return len(self._trackers)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._trackers or request_id in self._groups

    def advance(
        self,
        requests: Sequence[Request],
        token_ids: Sequence[int | None],
        discarded: Collection[Request],
    ) -> list[OutputTracker]:
        """Hand each new token to its request's tracker, and take out the requests that ended.

        Args:
            requests: Whose tokens they are.
            token_ids: One for each; None where there is none.
            discarded: Requests whose token does not count.

        Returns:
            Requests that go on and got no token: the caller has to end them.
        """
        failed: list[OutputTracker] = []
        trackers, with_news, num_generated = self._trackers, self._with_news, 0
        for request, token_id in zip(requests, token_ids, strict=True):
            if discarded and request in discarded:
                continue
            tracker = trackers[request.request_id]
            with_news[tracker] = None
            if tracker.finish_reason is not None:
                # Where it had ended before, this step was for its scores: its token is nobody's.
                self.unschedule(tracker)
            elif token_id is None:
                failed.append(tracker)
            else:
                num_generated += 1
                if tracker.advance(token_id):
                    self.unschedule(tracker)
        self._counter.num_generated_tokens += num_generated
        return failed

    def advance_by_drafts(
        self, drafts: Sequence[VerifiedDrafts], discarded: Collection[Request]
    ) -> None:
        """Hand the tokens after the first to their requests' trackers, as far as each goes on.

        Args:
            drafts: What became of the draft tokens of a step; `advance` has had the first tokens.
            discarded: Requests whose tokens do not count.
        """
        for each in drafts:
            self._counter.num_draft_tokens += len(each.item.draft_token_ids)
            if each.item.request in discarded:
                continue
            tracker = self._trackers[each.item.request.request_id]
            for token_id in each.token_ids[1:]:
                if tracker.finish_reason is not None:
                    break
                self._counter.num_accepted_tokens += 1
                self._counter.num_generated_tokens += 1
                if tracker.advance(token_id):
                    self.unschedule(tracker)

    def tracker_of(self, request: Request) -> OutputTracker:
        """The tracker of an unfinished request."""
        return self._trackers[request.request_id]

    def start(self, trackers: Sequence[OutputTracker], *, deadline_s: float | None = None) -> None:
        """Take on the samples of one prepared request; all but the first may have to wait.

        Args:
            trackers: One for each sample.
            deadline_s: Seconds from now, after which `abort_late` ends it. None is never.
        """
        first = trackers[0]
        request_id = first.request.request_id
        if len(trackers) > 1:
            group = self._groups[request_id] = SampleGroup(request_id, trackers)
            self._group_of |= {each.request.request_id: group for each in trackers}
        for tracker in trackers:
            self._trackers[tracker.request.request_id] = tracker
        self._schedule(first)
        if deadline_s is not None:
            self._deadlines[request_id] = time.monotonic() + deadline_s

    def note(self, tracker: OutputTracker) -> None:
        """Let a request report at the end of the step."""
        self._with_news[tracker] = None

    def end(self, tracker: OutputTracker, reason: FinishReason, error: RequestFailure) -> None:
        """End a request that went wrong."""
        tracker.finish(reason, error)
        self.unschedule(tracker)
        self.note(tracker)

    def abort(self, request_id: str, error: RequestFailure | None = None) -> bool:
        """End a request early, all samples of it; False where none of them runs."""
        group, tracker = self._groups.get(request_id), self._trackers.get(request_id)
        samples = group.trackers if group is not None else [] if tracker is None else [tracker]
        running = [each for each in samples if each.finish_reason is None]
        for each in running:
            each.finish(FinishReason.ABORT, error)
            self.unschedule(each)
            self.note(each)
        return bool(running)

    def abort_late(self) -> None:
        """End the requests whose deadline has passed."""
        if not self._deadlines:
            return
        now = time.monotonic()
        for request_id in [each for each, at in self._deadlines.items() if now >= at]:
            message = "the deadline passed before the request was done"
            self.abort(request_id, RequestFailure("deadline_exceeded", message))

    def unschedule(self, tracker: OutputTracker) -> None:
        """Take a request out of the scheduler, if it is in there."""
        if tracker.is_scheduled:
            self._scheduler.finish(tracker.request)
            tracker.is_scheduled = False

    def take_outputs(self) -> list[RequestOutput]:
        """What there is to report, once; finished requests leave the book."""
        outputs = []
        groups: dict[str, SampleGroup] = {}
        with_news, self._with_news = self._with_news, {}
        now_s = time.monotonic()
        for tracker in with_news:
            output = tracker.take_output(now_s)
            if output.finish_reason is not None:
                self._counter.count_end(output)
                del self._trackers[output.request_id]
            group = self._group_of.get(output.request_id)
            if group is None:
                if output.finished:
                    self._deadlines.pop(output.request_id, None)
                outputs.append(output)
            else:
                group.note(tracker, output)
                groups[group.request_id] = group
        return outputs + [self._take_group_output(group) for group in groups.values()]

    def drop_all(self) -> None:
        """Forget every request, unreported."""
        for tracker in self._trackers.values():
            self.unschedule(tracker)
        self._trackers.clear()
        self._deadlines.clear()
        self._groups.clear()
        self._group_of.clear()
        self._with_news = {}

    def _schedule(self, tracker: OutputTracker) -> None:
        """Let a request wait, or only report it where its resumed tokens ended it."""
        if tracker.finish_reason is None or tracker.has_pending_scores:
            self._scheduler.add(tracker.request)
            tracker.is_scheduled = True
        else:
            self.note(tracker)

    def _take_group_output(self, group: SampleGroup) -> RequestOutput:
        for tracker in group.take_ready():
            # What was aborted while it was held has been reported.
            if tracker.request.request_id in self._trackers:
                self._schedule(tracker)
        output = group.output()
        if output.finished:
            del self._groups[group.request_id]
            for tracker in group.trackers:
                del self._group_of[tracker.request.request_id]
            self._deadlines.pop(group.request_id, None)
        return output
