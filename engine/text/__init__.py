"""Text and tokens: tokenizer, detokenizer, stop strings, chat templates and tool calls.

Read `tokenizer.py` first. This package knows nothing of scheduling, and never imports torch.
"""
