"""Runs: configuration, plan, run folder, resume, and what Python users call."""
