"""Many requests as one batch: what runs, how each ended, progress and budget."""
