"""Measurements, each with its conditions. Run one by `python -m benchmarks.<name>`."""
