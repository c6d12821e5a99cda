"""What two packages that never import one another agree on."""

from pathlib import Path

# A target that is not supervised: written by `data/packing.py`, left out by `model/loss.py`. The
# value is the default ignore_index of torch's cross_entropy, as Transformers' labels have it.
IGNORED = -100

# The small base of this repository, which is used where no other one is named.
EMBEDDED_MODEL = Path(__file__).parents[1] / "embedded" / "weights"
