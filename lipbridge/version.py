"""The version of lipbridge, stated once: the build reads it here, and so does every file and report that names it."""

__version__ = "0.1.0"
