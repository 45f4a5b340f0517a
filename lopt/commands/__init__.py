"""What a command line offers where lopt alone is installed: `python -m lopt`."""
