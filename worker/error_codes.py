"""The error codes of commands, the gateway and Celery messages; the producer has the others."""

from __future__ import annotations

from typing import Final

from batchmill.producer.error_codes import COMMAND, ERROR_CODES, GATEWAY, LETTER, ErrorCode

_CELERY: Final = "send the task as Celery does: protocol 2, JSON, with its id and name in headers"

#: Reasons why an element of a queue is not a Celery message that a worker can take.
_MESSAGE_CODES: Final = {
    "bad_body": "The body is not [args, kwargs, embed], or holds values that are not JSON.",
    "bad_embed": "A callback or chord of the task is not a Celery signature.",
    "bad_header": "A header has a wrong type.",
    "bad_id": "The task's id cannot be the id of a job.",
    "body_encoding": "The body's encoding is unknown.",
    "body_not_json": "The body is not JSON.",
    "compression": "The body is compressed in an unknown way.",
    "content_encoding": "The body is not text in UTF-8.",
    "content_type": "The body is not JSON by its content type.",
    "lone_surrogate": "The message has a lone surrogate, which UTF-8 cannot encode.",
    "no_body": "The body is missing.",
    "no_delivery_info": "The delivery information is missing.",
    "no_delivery_tag": "The delivery tag is missing.",
    "no_headers": "The headers are missing.",
    "no_id": "The task's id is missing.",
    "no_properties": "The properties are missing.",
    "no_task": "The task's name is missing.",
    "not_a_message": "The element is not a Celery message.",
    "unknown_task": "The task's name is unknown.",
}
#: Codes of commands: what they mean, and what to do.
_COMMAND_CODES: Final = {
    "usage": ("The command line is wrong.", "see `--help`"),
    "internal": ("An unforeseen error.", "report it; `--debug` shows the traceback"),
    "invalid_broker_url": ("The URL of the broker is wrong.", "correct it as the message says"),
    "invalid_settings": ("A setting is missing or invalid.", "correct it as the message says"),
    "not_live": ("A service does not report that it lives.", "restart it"),
    "not_ready": ("A service is not ready.", "wait, or look at its log"),
    "unknown_dead_letter": ("No dead letter has this id.", "see `batchmill dead-letters list`"),
    "unknown_endpoint": ("No endpoint has this URL.", "see `batchmill webhooks endpoints`"),
    "unknown_event": ("No webhook event has this id.", "see `batchmill webhooks list`"),
    "endpoint_disabled": ("The endpoint is disabled.", "enable it, then redeliver"),
    "unusable_letter": ("The dead letter cannot be sent again.", "read its reason, or drop it"),
    "broker_failed": ("The embedded broker cannot be used.", "do what the message says"),
    "no_webhook_secret": ("No webhook secret is set.", "set one, as the message says"),
    "no_state_folder": ("The folder for local state cannot be used.", "set BATCHMILL_STATE_DIR"),
    "not_private": ("A file with a secret can be read by others.", "restrict its permissions"),
    "child_failed": ("A process of `batchmill up` ended.", "see its log, which the message names"),
    "demo_failed": ("The demo did not end as it should.", "do what the message says"),
    "bench_failed": ("A benchmark did not end as it should.", "do what the message says"),
    "settings_error": ("A worker's settings cannot work.", "correct them as the message says"),
    "engine_start_error": ("The engine does not start.", "see the worker's log"),
    "metrics_failed": ("Metrics cannot be served on their address.", "do what the message says"),
    "gateway_failed": ("The gateway cannot listen on its address.", "do what the message says"),
    "unknown_shard": ("The list has no shard of this name.", "see `batchmill shards list`"),
    "unknown_api_key": ("No API key has this id.", "see `batchmill keys list`"),
    "unknown_adapter": (
        "No LoRA adapter or steering vector has this name.",
        "see `batchmill lora list` or `batchmill steering list`",
    ),
    "adapter_refused": (
        "The LoRA adapter or steering vector cannot be used.",
        "do what the message says",
    ),
    "unknown_receiver": (
        "No registered receiver has this id.",
        "see `batchmill webhooks receivers list`",
    ),
    "webhook_secret": ("The webhook secret cannot be changed.", "do what the message says"),
}
#: Codes of the gateway's HTTP responses, beside those of jobs: what they mean, and what to do.
_GATEWAY_CODES: Final = {
    "class_not_allowed": ("The API key may not use this priority.", "ask for a lower one"),
    "empty_file": ("The input file has no lines.", "send a file with lines"),
    "file_not_found": ("The input file was deleted.", "upload it again"),
    "file_too_large": ("The file has more bytes than the limit.", "split it"),
    "foreign_origin": ("The gateway without keys serves this machine only.", "make an API key"),
    "headers_too_large": ("The headers have more bytes than the limit.", "send less"),
    "insufficient_permissions": ("The API key lacks a right.", "use a key that has it"),
    "invalid_api_key": ("The API key is missing, unknown or revoked.", "send a valid key"),
    "method_not_allowed": ("The URL does not take this method.", "use the method of the API"),
    "model_not_found": ("No worker serves the model, or the key may not use it.", "choose another"),
    "not_found": ("The object does not exist.", "check its id"),
    "request_timeout": ("The body took too long to arrive.", "send it faster"),
    "request_too_large": ("The body has more bytes than the limit.", "send less"),
    "server_error": ("The job failed.", "try again; see the worker's log"),
    "too_many_lines": ("The file has more lines than the limit.", "split it"),
    "unknown_url": ("The URL does not exist.", "use a path of the API"),
    "too_many_receivers": ("The tenant has as many webhook endpoints as it may.", "delete one"),
    "webhook_not_reached": ("A webhook endpoint sent no response to a test.", "check its URL"),
    "unsupported_endpoint": ("The endpoint is not served.", "use one that the message names"),
}

SERVICE_ERROR_CODES: Final = (
    *(ErrorCode(code, *texts, (GATEWAY,)) for code, texts in _GATEWAY_CODES.items()),
    ErrorCode(
        "rate_limit_exceeded",
        "The limit of the API key is reached.",
        "try again after the time that the response names",
        (GATEWAY,),
        retryable=True,
    ),
    *(ErrorCode(code, *texts, (COMMAND,)) for code, texts in _COMMAND_CODES.items()),
    *(ErrorCode(code, meaning, _CELERY, (LETTER,)) for code, meaning in _MESSAGE_CODES.items()),
    ErrorCode(
        "given_up",
        "The message could not be taken several times.",
        "see the worker's log",
        (LETTER,),
    ),
)
#: All codes, in order.
ALL_ERROR_CODES: Final = tuple(
    sorted((*ERROR_CODES, *SERVICE_ERROR_CODES), key=lambda each: each.code)
)
