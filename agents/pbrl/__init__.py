"""Preference-based reinforcement learning: segments, who compares them, and rewards that are learned from it."""
