"""How fast the pool is, as ratios to something else in the same run: ``python -m benchmarks``."""
