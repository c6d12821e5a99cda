"""What every package may use: device, hub downloads, atomic files, the command line."""
