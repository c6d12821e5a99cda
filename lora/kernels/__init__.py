"""Triton kernels of the low-rank path and their launchers; nothing imports them before they are chosen."""
