"""Triton kernels of the low-rank path and their launchers, imported only when chosen."""
