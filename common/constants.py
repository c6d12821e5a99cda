"""What two packages that never import one another agree on."""

# A target that is not supervised: written by `data/packing.py`, left out by `model/loss.py`. The
# value is the default ignore_index of torch's cross_entropy, as Transformers' labels have it.
IGNORED = -100
