"""Run the command line as `python -m sora_chars`, for where the script `sora-chars` is not on the PATH."""

from .cli import main

main()
