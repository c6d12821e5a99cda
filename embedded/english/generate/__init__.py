"""Makes the documents that the embedded base is pretrained on."""
