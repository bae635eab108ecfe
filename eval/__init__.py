"""Benchmarks of hallucination, their judges, and the statistics that compare their scores."""
