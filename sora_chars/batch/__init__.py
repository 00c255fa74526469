"""Batches: submitting many requests, their outcomes, progress and budget."""
