"""The network, its attention patterns and its training objectives.

Nothing here knows about DeepSpeed, files or the configuration of a run.
"""
