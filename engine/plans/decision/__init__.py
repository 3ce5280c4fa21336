"""Decisions: each question of a job is read from the probabilities of its labels, one token each.

Read `plan.py` first. `spec.py` reads the job's field, `prompts.py` writes the prompts, `labels.py`
finds the tokens of the labels, and `answers.py` turns probabilities into answers.
"""
