"""Adapters that leave a study: as plain PEFT LoRA where the method allows it, else in this package's format.

    plain LoRA                  the stored files, as they are
    LoRA slots of fixed weight  one LoRA of rank K·r, exactly:  s Σ_k B_k A_k = s [B_1 … B_K] [A_1; …; A_K]
    all else                    the files of the stage, for `load_adapter`

    symbol      shape
    A_k         (r, d_in)
    B_k         (d_out, r)
    s           alpha / r; alpha becomes K·alpha, so that the scale stays

A folder in this package's format holds

    dgg_ray.json           model, strategy, adapter, training, and the tasks in their order
    adapter/               as in the store: PEFT's files and layout.safetensors
    strategy.safetensors   what the strategy handed on, if anything
    facts/                 what the strategy knows of the tasks' data, such as prototypes
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dgg_ray.adapters.lora_slots import LoraSlots
from dgg_ray.config.loader import build_plugin
from dgg_ray.config.parsing import check_type
from dgg_ray.config.study_mapping import plain_value
from dgg_ray.core.errors import Fault, ResultsError, StudyError
from dgg_ray.core.interfaces import (
    ADAPTER_FILE,
    LAYOUT_FILE,
    Adapter,
    AdapterLayout,
    Example,
    Model,
    StageSetup,
    Training,
)
from dgg_ray.core.stage import Stage
from dgg_ray.core.strategy import Strategy, bind_context, uses
from dgg_ray.storage.stage_store import StageStore, open_store

if TYPE_CHECKING:  # the parts that an export needs do without torch
    from torch import Tensor

    from dgg_ray.training.learner import PeftLearner

DESCRIPTION = "dgg_ray.json"
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's name for it
FORMAT = 1  # raise when a folder is written in another form
Form: TypeAlias = Literal["stored", "concatenated", "own"]


def form_of(stage: Stage) -> Form:
    """The form of a stage's exported adapter: `stored` LoRA, `concatenated` slots, or our `own` form.

    Slots whose weights are all 1 are one sum of products. Weights that depend on the example, a product of
    sums and scaled base weights are not.
    """
    from dgg_ray.training.strategy_instance import strategy_of

    strategy = strategy_of(stage)
    layout = strategy.layout()
    if uses(strategy, "route") or type(layout) not in (type(None), AdapterLayout, LoraSlots):
        return "own"
    if not isinstance(layout, LoraSlots):
        return "stored"
    # Layers are merged where they are not routed; 0 routed layers stands for all of them.
    return "concatenated" if layout.merge == "exact" or not layout.routed_layers else "own"


def write_adapter(folder: Path, stage: Stage, model: Model, store: StageStore, target: Path) -> Form:
    """Write a finished stage's adapter into an empty folder; return the form that it has there.

    folder: the stage's files. store: for the facts of its tasks' data.
    """
    form = form_of(stage)
    if form == "own":
        write_own_format(folder, stage, model, store, target)
        return form
    config = json.loads((folder / "adapter" / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config["revision"] = getattr(model, "revision", None)
    if not (folder / "adapter" / LAYOUT_FILE).exists():  # a first slot is plain LoRA
        form = "stored"
        shutil.copyfile(folder / "adapter" / ADAPTER_FILE, target / ADAPTER_FILE)
    else:
        copies = concatenate_slots(folder / "adapter", target / ADAPTER_FILE)
        config["r"], config["lora_alpha"] = copies * config["r"], copies * config["lora_alpha"]
    (target / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return form


def concatenate_slots(adapter: Path, target: Path) -> int:
    """Write all slots of each linear layer as one LoRA, oldest first; return their number K."""
    import torch
    from safetensors.torch import load_file, save_file

    own, frozen = load_file(adapter / ADAPTER_FILE), load_file(adapter / LAYOUT_FILE)
    joined, copies = dict(own), 1
    for name, tensor in frozen.items():
        layer, factor = name.rsplit(".frozen_", 1)
        key, axis = f"{layer}.lora_{factor}.weight", "AB".index(factor)
        joined[key] = torch.cat([tensor, own[key]], axis).contiguous()
        copies = joined[key].shape[axis] // own[key].shape[axis]
    save_file(joined, target, {"format": "pt"})
    return copies


def write_own_format(folder: Path, stage: Stage, model: Model, store: StageStore, target: Path) -> None:
    """Write what `load_adapter` reads."""
    from dgg_ray.training import facts

    shutil.copytree(folder / "adapter", target / "adapter")
    if (state := folder / "strategy.safetensors").exists():
        shutil.copyfile(state, target / state.name)
    chain = stages_to(stage)
    for one in chain:
        for name in store.backend.list_names(f"facts/{facts.owner_of_data(one)}/"):
            if (content := store.backend.read(name)) is not None:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(content)
    description = {
        "format": FORMAT,
        "model": plain_value(model),
        "fingerprint": stage.model,
        "strategy": plain_value(stage.strategy),
        "adapter": plain_value(stage.adapter),
        "training": plain_value(stage.training),
        "seed": stage.seed,
        "tasks": [[list(one.trained_tasks), list(one.data)] for one in chain],
    }
    (target / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def stages_to(stage: Stage) -> list[Stage]:
    """The stages of a sequence up to this one, the first one first."""
    return [*(stages_to(stage.parent) if stage.parent else []), stage]


# -- reading it again ------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedAdapter:
    """A base model with an exported adapter, for methods that plain PEFT cannot express.

    strategy: it weighs the adapter's parts for each example, where the method does so.
    """

    learner: PeftLearner
    strategy: Strategy

    @property
    def model(self) -> Any:
        """The PEFT model. Its forward pass knows nothing of routes and prompts: `answer` does."""
        return self.learner.peft

    def route(self, examples: Sequence[Example]) -> Tensor | None:
        """Weights (N, K) of the adapter's parts for each example; None is the layout's own choice."""
        import torch

        with torch.no_grad():
            return self.strategy.route(examples)

    def answer(self, examples: Sequence[Example], max_new_tokens: int = 32) -> list[str]:
        """Greedy answers, in the examples' order, as the study's evaluations give them."""
        return self.learner.answer(examples, max_new_tokens, self.route(examples))


class NoData(dict[str, Any]):
    """Stands for the tasks' data, which no exported folder holds."""

    def __missing__(self, task: str) -> Any:
        raise ResultsError(
            f"the folder lacks what the method knows of the data of {task}: evaluate the stage in its study, "
            f"and export it again"
        )


def load_adapter(folder: str | Path, model: Model | None = None, device: str = "cpu") -> LoadedAdapter:
    """Load a folder that `dgg-ray export` wrote in this package's format.

    model: the base model, if it lies elsewhere than in the study. device: as torch names it.

    Raises ResultsError where the folder is no such export, or the base model is another one.
    """
    import torch

    from dgg_ray.training.learner import PeftLearner, silence_libraries
    from dgg_ray.training.stage_context import LearnerContext
    from dgg_ray.training.strategy_instance import load_state, strategy_of

    folder = Path(folder).expanduser().absolute()
    description = read_description(folder)
    base: Model = model or build("models", description["model"])
    if (found := base.fingerprint()) != (wanted := description["fingerprint"]):
        raise ResultsError(
            f"{folder} is an adapter of the base model with fingerprint {wanted[:16]}…, and "
            f"{plain_value(base)} has {found[:16]}…: give load_adapter the model that it was trained on"
        )
    stage = stage_of(description)
    silence_libraries()
    learner, strategy = PeftLearner(base, device), strategy_of(stage)
    load_state(strategy, folder)
    setup = StageSetup(stage.adapter, stage.training, 0, stage.seed, stage.task, folder, strategy.layout())
    learner.start(setup)
    learner.peft.eval()
    place = (learner, stage, NoData(), open_store(folder))
    bind_context(strategy, LearnerContext(*place, lambda call, *given: call(*given), {stage.task: folder}))
    with torch.no_grad():
        strategy.prepare()
    return LoadedAdapter(learner, strategy)


def read_description(folder: Path) -> dict[str, Any]:
    """The description in an exported folder."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        plain = (folder / ADAPTER_CONFIG).is_file()
        hint = (
            "it is a PEFT folder, which PeftModel.from_pretrained loads" if plain else "see `dgg-ray export`"
        )
        raise ResultsError(f"{folder} holds no {DESCRIPTION}: {hint}") from None
    except ValueError as error:
        raise ResultsError(
            f"{folder / DESCRIPTION} is damaged ({error}); export the adapter again"
        ) from error
    if (found := description.get("format")) != FORMAT:
        raise ResultsError(
            f"{folder} has format {found}, and this version of dgg_ray reads format {FORMAT}: use the "
            f"version that exported it, or export it again"
        )
    return description


def stage_of(description: dict[str, Any]) -> Stage:
    """The stage whose adapter it is, with the stages before it."""
    strategy = build("strategies", description["strategy"])
    faults: list[Fault] = []
    adapter = check_type(Adapter, description["adapter"], "adapter", faults)
    training = check_type(Training, description["training"], "training", faults)
    if faults:
        raise StudyError(faults, DESCRIPTION)
    shared = (description["fingerprint"], adapter, training, strategy, description["seed"])
    stage: Stage | None = None
    for names, digests in description["tasks"]:
        stage = Stage(*shared, tuple(names), tuple(digests), stage)
    assert stage
    return stage


def build(kind: Literal["models", "strategies"], raw: Any) -> Any:
    """Build a plug-in from its description; StudyError where it is missing or takes other settings."""
    faults: list[Fault] = []
    plugin = build_plugin(kind, raw, kind, "", faults)
    if faults:
        raise StudyError(faults, DESCRIPTION)
    return plugin
