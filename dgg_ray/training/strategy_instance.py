"""The instance of a strategy that serves a stage: which class it is, what it is given, which hooks it has."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from dgg_ray.core.interfaces import StepHooks
from dgg_ray.core.stage import Stage
from dgg_ray.core.strategy import Strategy, plain_first, uses
from dgg_ray.training import facts, hook_checks


def strategy_of(stage: Stage) -> Strategy:
    """The strategy that trains the stage: plain fine-tuning where it declares to start plain."""
    return Strategy() if plain_first(stage.strategy, stage.earlier) else stage.strategy


def step_hooks(strategy: Strategy, stage: Stage) -> StepHooks:
    """The hooks that the strategy's class defines, with their results checked; others cost nothing."""
    tasks = len(stage.earlier) + 1
    return StepHooks(
        hook_checks.loss_hook(strategy) if uses(strategy, "edit_loss") else None,
        hook_checks.in_place(strategy, "after_step") if uses(strategy, "after_step") else None,
        hook_checks.route_hook(strategy, "training_route", tasks)
        if uses(strategy, "training_route")
        else None,
    )


def load_state(strategy: Strategy, folder: Path | None) -> None:
    """Give the strategy the state that a finished stage stored, if it stored one."""
    if folder and (state := folder / "strategy.safetensors").exists():
        strategy.load_state(dict(facts.unflattened(load_file(state))))
