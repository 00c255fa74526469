"""Integrations with other people's frameworks: one module and one extra each."""
