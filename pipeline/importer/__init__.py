"""Published Lightning checkpoints become a training checkpoint and a bundle."""
