"""Measurements and the pretraining of the embedded base: run each as `python -m benchmarks.NAME`."""
