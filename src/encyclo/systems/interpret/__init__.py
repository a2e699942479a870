"""The interpret wing."""
