"""Layout-free checkpoints: boxes of full tensors, committed atomically, read by any layout."""
