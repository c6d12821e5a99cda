"""The small base that makes the first run work offline: weights, rows, and how both were made."""
