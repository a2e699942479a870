"""The text wing."""
