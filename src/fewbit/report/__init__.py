"""What quantization cost, told: `compare`, tables for the terminal, JSON, one self-contained HTML page."""
