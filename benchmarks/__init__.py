"""Measure how fast the pool is, as a ratio to something else in the same run: ``python -m benchmarks``."""
