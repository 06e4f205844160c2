"""A checkpoint becomes a self-verified bundle that needs nothing of this repository."""
