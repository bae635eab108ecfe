"""Sweeps: the search space, and its trials on Ray Tune."""
