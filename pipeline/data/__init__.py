"""Reading datasets in training: token streams, the order of samples, prefetching."""
