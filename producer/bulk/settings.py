"""The prices of models, from `BATCHMILL_PRICES`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Price(BaseModel):
    """Prices of one model, per million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: float = Field(ge=0, allow_inf_nan=False)
    #: Prompt tokens from the prefix cache; None charges them as the others.
    cached: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)
    #: Any text.
    currency: str = ""


class PriceSettings(BaseSettings):
    """Prices. Each field is `BATCHMILL_<NAME>` in upper case."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHMILL_", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    #: JSON with the price of each model per million tokens, or of every other one as `*`:
    #: `{"demo": {"input": 0.1, "cached": 0.05, "output": 0.4, "currency": "EUR"}}`. `bulk` shows
    #: with it what a run costs.
    prices: dict[str, Price] = Field(default_factory=dict)
