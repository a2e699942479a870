"""Sparse and dense indexes behind one interface."""
