"""Evaluation: answers against references. Scorers are pure functions of text."""
