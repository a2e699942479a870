"""The image wing."""
