"""Societies of agents: rules that cost something to keep, and how breaking them spreads."""
