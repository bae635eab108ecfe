"""Inference in parallel Ray Data actors: reference log-probs and answers."""
