"""`esolm serve`: a bundle behind an address, with continuous batching over its decoder."""
