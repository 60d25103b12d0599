"""Passes over tensors and integer products: compiled, on oneDNN, portable, and the reference they all equal."""
