"""The command line: it parses, calls and prints. Nothing heavy is imported before a command needs it."""

from lipbridge.cli.app import app, main

__all__ = ["app", "main"]
