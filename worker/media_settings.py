"""Settings of a worker that fetches and decodes pictures and sounds."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from batchmill.producer.webhook.target_settings import TargetSettings


class MediaReadingSettings(TargetSettings):
    """Limits of one picture or sound; the limits of its bytes are those of a producer."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHMILL_", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    #: Most pixels of a picture. A worker holds three bytes of each until the engine has it.
    media_max_pixels: int = Field(default=40_000_000, ge=1, le=178_956_970)
    #: Most bytes of the decoded pictures and sounds of a job: 3 per pixel, 4 per sample.
    media_max_job_bytes: int = Field(default=1 << 30, ge=1)
    #: Longest sound, seconds.
    media_max_audio_s: float = Field(default=600.0, gt=0, le=24 * 3600, allow_inf_nan=False)
    #: Seconds that decoding one picture or sound may take.
    media_decode_timeout_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    #: Most bytes of memory of a process that decodes.
    media_decode_memory_bytes: int = Field(default=1 << 30, ge=1 << 28)
    #: Processes that decode, started when they are needed.
    media_processes: int = Field(default=2, ge=1, le=64)
    #: Seconds that fetching one picture or sound may take in all.
    media_fetch_timeout_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
