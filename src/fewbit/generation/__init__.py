"""Running language models: a quantized cache of keys and values, and generation with speed told."""
