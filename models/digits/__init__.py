"""Handwritten digits: images in, class probabilities out."""

from .plugin import plugin

__all__ = ["plugin"]
