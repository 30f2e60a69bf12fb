"""Agents that learn from preferences: which of two episodes from one state is the better."""
