"""Adapt a pretrained vision model to your own images, on plain PyTorch."""

__version__ = "0.1.0"
