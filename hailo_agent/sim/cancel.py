"""Cancellation that cannot get lost on its way.

asyncio tells a task once that it is cancelled. A gRPC call that loses its connection at that very
moment raises the loss instead (grpclib), as when Ctrl-C reaches the agent and us together; whoever
goes on after a failed call must therefore ask.
"""

import asyncio


def heed_cancellation() -> None:
    """End the running task, if it was cancelled and something else was raised in its place."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
