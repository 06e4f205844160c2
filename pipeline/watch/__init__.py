"""Looking at a run from outside: its state, its steps, its samples."""
