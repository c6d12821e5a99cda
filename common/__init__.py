"""What every package may use: device, hub downloads, files written in one step, sharded tensors,
the command line."""
