"""Benchmarks: run them from a clone, as ``python -m benchmarks.probe``; see README.md."""
