"""Environments of robots: Meta-World's manipulation tasks, dm-control's suite, robosuite's tasks."""

from .recovering import RecoveringAsyncVectorEnv, make_async

__all__ = ["RecoveringAsyncVectorEnv", "make_async"]
