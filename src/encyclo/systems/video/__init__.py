"""The video wing."""
