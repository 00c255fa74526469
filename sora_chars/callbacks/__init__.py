"""Receiving callbacks: the receiver and its adapters for web frameworks."""
