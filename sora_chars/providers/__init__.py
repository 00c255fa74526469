"""The providers: coroutines over a pure codec, one file each."""
