"""Measuring trained networks: likelihoods, samples, zero-shot suites."""
