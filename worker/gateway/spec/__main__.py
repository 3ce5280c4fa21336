"""Writes the OpenAPI document into the file that the command line names."""

from __future__ import annotations

import sys
from pathlib import Path

from batchmill.worker.gateway.app import routes

from .document import openapi_document, render

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(openapi_document(routes())), encoding="utf-8")
