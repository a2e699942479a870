"""Layers, bottlenecks and backbones. Nothing here knows of papers, data or training."""
