"""What a training run needs around its loop: settings, rows and batches, ranks, checkpoints, run
folder, report and progress."""
