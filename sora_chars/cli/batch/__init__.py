"""The parts of `sora-chars batch`: reading rows, running them, writing their outcomes."""
