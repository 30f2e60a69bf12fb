"""Environments of graphical user interfaces: grounding, live pages, jigsaws."""
