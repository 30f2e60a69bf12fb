"""Teachers: they design the rewards that a learner sees, so that it learns faster what the true reward asks for."""
