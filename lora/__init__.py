"""LoRA by hand: layers, the fused low-rank path, injection into a model, PEFT's adapter files."""
