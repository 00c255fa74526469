"""Run the command line with `python -m sora_chars`, without the `sora-chars` script."""

from .cli import main

main()
