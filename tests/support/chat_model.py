"""A tiny random model that chats: one token per byte, and a chat template."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from .byte_tokenizer import save_byte_tokenizer
from .chat_templates import SPECIAL_TOKENS


def save_chat_model(folder: Path, template: str) -> None:
    """Save a model of two layers with random weights, and a tokenizer with a chat template."""
    save_byte_tokenizer(folder, SPECIAL_TOKENS, template)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        eos_token_id=256,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
