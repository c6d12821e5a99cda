"""From a row of a data set to token ids, masks and packed batches; and from a model's reply back to tool calls."""
