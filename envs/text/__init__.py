"""Environments whose episodes are text."""
