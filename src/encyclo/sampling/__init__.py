"""Turning a model into output: autoregressive, masked, diffusion."""
