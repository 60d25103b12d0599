"""Quantizing block by block: language models in memory, and checkpoints of any size from folder to folder."""
