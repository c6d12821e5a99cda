"""Gemma-2 by hand: layers, attention, loss, loader, embedding resize and decoding."""
