"""Environments of reward design: small enough to be solved exactly, with rewards so sparse that learners need help."""
