"""RLHF-V's line - corrected preference pairs in, fewer hallucinations out - as Ray jobs."""

import gc

__version__ = "0.1.0"

# torch, transformers and DeepSpeed make about a million objects that stay. The collector would look
# through them again and again while they are imported, for a tenth of the time.
gc.set_threshold(100_000, 50, 100)
