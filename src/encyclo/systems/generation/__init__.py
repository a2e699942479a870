"""The generation wing."""
