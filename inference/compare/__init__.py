"""Runs of ``fit`` beside each other: ``differences`` pairs their seeds, ``command`` prints the table."""
