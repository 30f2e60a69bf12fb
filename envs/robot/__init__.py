"""Environments of robots: Meta-World's manipulation tasks, dm-control's suite, robosuite's tasks."""
