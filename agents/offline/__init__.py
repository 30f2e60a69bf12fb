"""Learning from recorded control episodes: their file formats, flat transitions, and the base of the agents."""
