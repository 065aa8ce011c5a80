"""Folders on disk: locks that end with their process, and temporary folders that do not stay."""
