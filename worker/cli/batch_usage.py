"""What a batch has used so far: tokens, and their cost by the operator's prices."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchmill.producer import BatchStatus
    from batchmill.producer.bulk.usage import Cost
    from batchmill.producer.store.job_store import JobStore


def batch_cost(batch: BatchStatus, store: JobStore) -> Cost | None:
    """Return what the ended jobs of a batch cost; None if the operator has set no prices.

    The price is that of the one model of its lines, or else that of `*`.
    """
    from batchmill.producer.bulk.settings import PriceSettings
    from batchmill.producer.bulk.usage import Tokens, cost_of
    from batchmill.producer.protocol import keys

    prices = PriceSettings().prices
    if not prices:
        return None
    stored = store.client.hget(keys.batch(batch.id), "model")
    model = stored.decode(errors="replace") if isinstance(stored, bytes) else "several models"
    return cost_of({model: Tokens.of_batch(batch.usage)}, prices)


def describe_usage(batch: BatchStatus, cost: Cost | None) -> str:
    """Return the tokens and the cost of a batch's ended jobs in words."""
    usage = batch.usage
    tokens = (
        f"used: {usage.input_tokens} prompt tokens "
        f"({usage.input_tokens_details.cached_tokens} from the cache), "
        f"{usage.output_tokens} output tokens"
    )
    return tokens if cost is None else f"{tokens}, cost {cost}"
