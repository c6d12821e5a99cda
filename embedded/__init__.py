"""The small base that makes the first run work offline: its weights and rows, and how both were made."""
