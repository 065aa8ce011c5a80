"""``python -m lipbridge``."""

from lipbridge.cli import main

main()
