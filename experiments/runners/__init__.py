"""Orchestration that joins training and evaluation: experiment, sweep, study."""
