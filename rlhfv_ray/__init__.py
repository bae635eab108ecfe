"""RLHF-V's line - corrected preference pairs in, fewer hallucinations out - as Ray jobs."""

__version__ = "0.1.0"
