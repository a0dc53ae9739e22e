"""Frozen, pre-trained, modality-specific transformers."""
