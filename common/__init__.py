"""What every package may use: device and precision, hub downloads, atomic files, the command line."""
