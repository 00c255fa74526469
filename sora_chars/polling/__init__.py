"""Watching tasks until they end: one scheduler, the polling strategies, and the handles that callers hold."""
