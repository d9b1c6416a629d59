"""Pinned, reproducible conversion of Hugging Face models and LoRA adapters to GGUF with upstream llama.cpp."""

__version__ = "0.1.0"
