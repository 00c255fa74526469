"""The emulator: a local HTTP server that behaves as the providers are documented to."""
