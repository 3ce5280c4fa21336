"""Text and tokens: tokenizer, detokenizer, stop strings, chat templates and tool calls.

Read `tokenizer.py` first. Nothing here knows about scheduling, and nothing here imports torch.
"""
