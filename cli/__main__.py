"""``python -m cli``, for when the console script is not on the path."""

from cli.app import main

main()
