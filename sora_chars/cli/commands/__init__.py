"""The commands of `sora-chars`, one module for each group."""
