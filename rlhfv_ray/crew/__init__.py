"""Processes that live across the trials of a sweep or study."""
