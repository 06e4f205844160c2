"""Plans what a run will cost, from its configuration alone: `esolm plan`."""
