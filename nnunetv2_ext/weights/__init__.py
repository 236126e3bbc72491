"""Weights and checkpoints: read so that they run no code, published names, trained models as safetensors."""
