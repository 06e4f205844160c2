"""The files that travel with an exported checkpoint.

They need torch, transformers, safetensors and sentencepiece, and nothing of this repository.
"""
