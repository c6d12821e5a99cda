"""From a row of a data set to ids, masks and packed batches, and from a reply to its calls."""
