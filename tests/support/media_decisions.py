"""Transformers' answers to the questions of a decision about a picture or a sound."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.decision.configuration_utils import DecisionConfig
from transformers.decision.template_utils import (
    DECISION_PROMPT,
    label_token_ids,
    parse_questions,
)
from transformers.utils.chat_template_utils import _compile_jinja_template

from batchmill.engine.contract.media import Media

from .tiny_media_models import TinyMediaModel

#: Their labels are single letters, each a token of the tiny models.
QUESTIONS: dict[str, dict[str, Any]] = {
    "what": {
        "type": "choice",
        "instructions": "What is it?",
        "criteria": {"a mill": "with a wheel", "a bridge": None, "a boat": None},
    },
    "old": {"type": "score", "instructions": "How old?", "criteria": ["new", "old", "ancient"]},
}
PLACEHOLDER = "img-1"
#: Question -> option -> probability.
Answers = dict[str, dict[str, float]]


def decision_probabilities(model: TinyMediaModel, state: str, medium: Media) -> Answers:
    """Return the probabilities of transformers, from its own prompt of a decision.

    Args:
        model: A tiny model.
        state: A text with `PLACEHOLDER` in the place of the medium.
        medium: A picture or a sound.
    """
    found: Answers = {}
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    for question in parse_questions(QUESTIONS, DecisionConfig()):
        text = _compile_jinja_template(DECISION_PROMPT).render(state=state, question=question)
        shown = text.replace(PLACEHOLDER, model.written)
        inputs = model.process(f"user:{shown};assistant:", [medium])
        with torch.inference_mode():
            logits = model.hf_model(**inputs).logits[0, -1].float()
        labels = logits[label_token_ids(tokenizer, tuple(question.labels))].softmax(-1).tolist()
        names = QUESTIONS[question.name]["criteria"]
        options = list(names) if question.type == "choice" else [str(n) for n in range(len(names))]
        found[question.name] = dict(zip(options, labels, strict=True))
    return found
