"""Benchmarks: the contract that each keeps, and one file for each."""
