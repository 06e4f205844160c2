"""Ranks of a run as processes of this machine: how they start, and how they are asked to stop."""
