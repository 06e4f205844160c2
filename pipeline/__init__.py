"""The training pipeline: configuration, data, parallelism, training, checkpoints, export."""
