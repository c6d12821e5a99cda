"""LoRA by hand: the layer, the fused low-rank path, injection into a model and PEFT's adapter files."""
