"""The summary of a bulk run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchmill.worker.terminal import print_json

if TYPE_CHECKING:
    from batchmill.producer.bulk.options import BulkCounts, BulkOptions
    from batchmill.producer.bulk.run import BulkRun
    from batchmill.producer.bulk.usage import Cost


def print_summary(run: BulkRun, options: BulkOptions, elapsed_s: float, *, as_json: bool) -> None:
    """Print what the run did, and where its results are."""
    from batchmill.producer.bulk.settings import PriceSettings
    from batchmill.producer.bulk.usage import cost_of
    from batchmill.producer.plural import pluralize

    cost = cost_of(run.counts.usage, PriceSettings().prices)
    if as_json:
        print_json(_data(run, options, elapsed_s, cost))
        return
    _print_counts(run.counts, elapsed_s)
    if cost is not None:
        exact = "at most " if options.deduplicate else ""
        print(f"cost of all results: {exact}{cost}")
    if run.batch_id is not None:
        print(f"batch: {run.batch_id}")
    print(f"results: {options.output_path if run.table is None else run.table.path}")
    if run.table is not None and run.table.num_escaped:
        print(
            f"{pluralize(run.table.num_escaped, 'cell')} with = + - or @ at the beginning got an "
            "apostrophe, so that no spreadsheet computes it; --keep-formulas leaves it out"
        )
    if run.table is not None and run.table.num_cut:
        print(f"{pluralize(run.table.num_cut, 'cell')} cut for Excel; see the last column")
    if run.counts.all_failed:
        print(f"failures: {options.errors_path}")


def tokens_per_s(counts: BulkCounts, elapsed_s: float) -> float:
    """Return the output tokens per second of this command."""
    return counts.output_tokens / max(elapsed_s, 1e-3)


def _print_counts(counts: BulkCounts, elapsed_s: float) -> None:
    from batchmill.producer.plural import pluralize

    print(
        f"{counts.completed} completed, {counts.failed} failed, "
        f"{counts.resumed} from earlier runs; "
        f"{pluralize(counts.output_tokens, 'token')} in {elapsed_s:.1f} s "
        f"({tokens_per_s(counts, elapsed_s):.0f} tok/s), "
        f"{counts.cached_tokens} of {counts.prompt_tokens} prompt tokens from the cache"
    )
    if counts.resumed_failed:
        verb = "was a failure" if counts.resumed_failed == 1 else "were failures"
        print(
            f"{counts.resumed_failed} of the {counts.resumed} from earlier runs {verb}; "
            "--retry-failed sends such lines again"
        )
    if counts.replaced:
        verb = "was" if counts.replaced == 1 else "were"
        print(f"{pluralize(counts.replaced, 'job')} of an earlier --model {verb} cancelled")


def _data(
    run: BulkRun, options: BulkOptions, elapsed_s: float, cost: Cost | None
) -> dict[str, Any]:
    counts = run.counts
    return {
        "total": counts.total,
        "resumed": counts.resumed,
        "resumed_failed": counts.resumed_failed,
        "completed": counts.completed,
        "failed": counts.failed,
        "prompt_tokens": counts.prompt_tokens,
        "cached_tokens": counts.cached_tokens,
        "output_tokens": counts.output_tokens,
        "elapsed_s": round(elapsed_s, 3),
        "output_tokens_per_s": round(tokens_per_s(counts, elapsed_s), 1),
        "cost": None if cost is None else cost_data(cost),
        "batch": run.batch_id,
        "output": str(options.output_path if run.table is None else run.table.path),
        "errors": str(options.errors_path),
    }


def cost_data(cost: Cost) -> dict[str, Any]:
    """Return a cost as JSON."""
    return {"amounts": cost.amounts, "models_without_price": list(cost.unpriced)}
