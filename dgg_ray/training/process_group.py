"""The worker group of this process: its size, its ranks, and calls that one rank makes for all.

A process that trains alone is a group of one. PyTorch is imported only where a function is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def world_size() -> int:
    """Number of processes in this worker group."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank in its worker group; 0 where it trains alone."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def on_rank0(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function on rank 0; return its result, or raise its error, on every rank.

    Every rank of the group must make the same calls in the same order. Result and error are pickled.
    """
    if world_size() == 1:
        return function(*arguments)
    import torch.distributed as dist

    outcome: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            outcome = [(True, function(*arguments))]
        except Exception as error:
            outcome = [(False, error)]
    dist.broadcast_object_list(outcome, src=0)
    succeeded, result = outcome[0]
    if not succeeded:
        raise result
    return result
