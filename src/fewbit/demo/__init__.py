"""A real image classifier and a real text encoder, quantized, run, and compared with themselves in float."""
