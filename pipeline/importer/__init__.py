"""Makes published Lightning checkpoints a training checkpoint and a bundle."""
