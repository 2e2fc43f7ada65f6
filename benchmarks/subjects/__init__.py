"""Pools of real clients that :mod:`benchmarks.blows` hits, each kind of server in a file of its own."""
