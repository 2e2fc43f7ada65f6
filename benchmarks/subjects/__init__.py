"""The pools of real clients that :mod:`benchmarks.blows` hits: one file for each kind of server."""
