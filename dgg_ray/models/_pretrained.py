"""Models that lie in a folder or on a hub, in the Hugging Face layout: what all of them share.

Weights are read from safetensors alone; pickles and code that comes with a model are never run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from dgg_ray.core.errors import Refused, StageError
from dgg_ray.core.file_hashes import COMMIT, commit_of, content
from dgg_ray.core.interfaces import Model, digest
from dgg_ray.storage import fetching

NEEDED = ("config.json", "tokenizer_config.json", "*.safetensors", "*processor_config.json")


@dataclass(frozen=True)
class Pretrained(Model):
    """A model from a folder or a hub.

    path: where the model is: a folder, its URL (s3://BUCKET/LLAVA; each node fetches it once), or a hub name.
    revision: the commit of a hub name, required there: it stands for the weights in every stage key. A branch
        or a tag is taken for the commit that was fetched last.
    dtype: number type of the frozen base; the LoRA weights are fp32 whatever it is.
    four_bit: whether to hold the frozen base in 4 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314: nf4,
        double quantisation, computed in bfloat16); needs bitsandbytes and a GPU.
    """

    architectures: ClassVar[tuple[str, ...]] = ()
    """What config.json may call the model; empty for anything that takes images."""

    path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    four_bit: bool = False

    def __post_init__(self) -> None:
        if (folder := fetching.path(self.path)).is_dir():  # a worker may stand elsewhere
            object.__setattr__(self, "path", str(folder.absolute()))
        elif self.revision and not fetching.address(self.path):
            commit = commit_of(self.path, self.revision)  # a branch may be another one tomorrow
            object.__setattr__(self, "revision", commit or self.revision)

    @property
    def place(self) -> dict[str, Any]:
        """Which files `from_pretrained` is to take."""
        if self.folder:
            return {"local_files_only": True}
        if not self.revision:
            raise StageError(f"model.path: {self.path} is no folder here, and a hub name needs a revision")
        return {"revision": self.revision}

    @property
    def source(self) -> str:
        """Where the files are, as `from_pretrained` takes it."""
        return str(self.folder or self.path)

    @property
    def folder(self) -> Path | None:
        """Where the files are; None for a hub name. Those of a URL are fetched: Refused, StoreError."""
        place = fetching.staged(self.path)
        return place if place.is_dir() or place.is_absolute() else None

    def weights(self, kind: Any) -> Any:
        """The model as an instance of `kind`, a transformers class, in evaluation mode."""
        import torch

        settings: dict[str, Any] = {"dtype": getattr(torch, self.dtype), "use_safetensors": True}
        if self.four_bit:
            from transformers import BitsAndBytesConfig

            settings["device_map"] = {"": torch.cuda.current_device()}
            settings["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
        return kind.from_pretrained(self.source, **settings, **self.place).eval()

    def skeleton(self) -> Any:
        """The model without weights, to look at its layers; None where its files are not on this machine."""
        if self.folder is None:
            return None
        return skeleton(self.source)

    def at_hand(self) -> bool:
        return self.folder is not None

    def context(self) -> int:
        return positions(self.source)

    def fingerprint(self) -> str:
        # The class and all settings: they say how pictures are prepared and weights are held.
        settings = {k: v for k, v in asdict(self).items() if k not in ("path", "revision")}
        source = content(self.folder) if self.folder else [self.path, self.revision]
        return digest([type(self).__name__, settings, source])

    def faults(self) -> list[tuple[str, str, str]]:
        found = []
        if self.four_bit and find_spec("bitsandbytes") is None:
            found.append(("four_bit", "needs bitsandbytes, which is not installed: pip install it", "true"))
        try:
            folder = self.folder
        except Refused as error:
            return [*found, ("path", f"must be there, and readable from here: {error}", "")]
        if folder is None:
            if not self.revision:
                rule = "is required for a hub name: the commit that stands for the weights"
                found.append(("revision", rule, ""))
            elif not COMMIT.fullmatch(self.revision):
                fetch = f"hf download {self.path} --revision {self.revision}"
                rule = "must be a commit, 40 hex digits: a branch may stand for other weights tomorrow; "
                rule += f"`{fetch}` makes it known here which one it is"
                found.append(("revision", rule, repr(self.revision)))
            return found
        if not folder.is_dir():
            return [*found, ("path", "no such folder", repr(self.path))]
        if (folder / "adapter_config.json").is_file():  # transformers would load what that names
            rule = (
                "must hold a whole model, and holds an adapter to another one: merge the two, and save that"
            )
            return [*found, ("path", rule, repr(self.path))]
        missing = [name for name in NEEDED if not any(folder.glob(name))]
        if "*.safetensors" in missing and any(folder.glob("*.bin")):
            missing.remove("*.safetensors")
            rule = "must hold safetensors; its weights are pickles, which are never read"
            found.append(("path", rule, repr(self.path)))
        found += [("path", f"must hold {name}", repr(self.path)) for name in missing]
        return found + ([] if "config.json" in missing else self.unfit(folder))

    def unfit(self, folder: Path) -> list[tuple[str, str, str]]:
        """What config.json says against it."""
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError:
            return [("path", "its config.json must be JSON", repr(self.path))]
        named = config.get("architectures") or []
        if self.architectures and named and not set(named) & set(self.architectures):
            rule = f"must hold a {' or '.join(self.architectures)}; for others there is the model `auto`"
            return [("path", rule, ", ".join(named))]
        if "vision_config" not in config:
            rule = "must hold a model that takes images: its config.json has no vision_config"
            return [("path", rule, ", ".join(named) or repr(self.path))]
        return []


def positions(folder: str | Path) -> int:
    """Tokens that the language model of a folder's config.json has positions for; 0 where it does not say."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 0


def skeleton(folder: str | Path) -> Any:
    """The model that a folder's config.json describes, without memory for weights."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)
