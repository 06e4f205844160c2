"""Makes a checkpoint a bundle that was verified and needs nothing of this repository."""
