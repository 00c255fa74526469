"""Staying under a provider's request limits, in one process or shared between several."""
