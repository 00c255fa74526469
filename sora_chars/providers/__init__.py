"""Providers: each consists of coroutines for the network and of pure functions for the protocol."""
