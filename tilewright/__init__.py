"""Tilewright: a compiler from Hugging Face decoder models to paged-attention engines."""
