"""The audio wing."""
