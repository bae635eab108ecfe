"""Judges: prompts, verdicts, and what is read from a judge's reply."""
