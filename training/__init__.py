"""What a training run needs around its loop: checkpoints, run folder, ranks, progress."""
