"""Incoming callbacks: the receiver, and its ASGI and aiohttp adapters."""
