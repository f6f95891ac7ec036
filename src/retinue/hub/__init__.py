"""Folders and hub ids: load, save, convert, build."""
