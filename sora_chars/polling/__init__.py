"""Polling of tasks until they end: the watcher, the polling strategies and task handles."""
