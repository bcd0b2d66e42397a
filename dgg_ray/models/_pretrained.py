"""Base class of models that lie in a folder or on a hub, in the Hugging Face layout.

Weights are read from safetensors alone. Pickles, and code that comes with a model, are never run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from dgg_ray.core.errors import PermanentStoreError, StageError
from dgg_ray.core.file_hashes import COMMIT, hash_folder, hub_commit
from dgg_ray.core.hashing import digest
from dgg_ray.core.interfaces import Model
from dgg_ray.storage import fetching

REQUIRED_FILES = ("config.json", "tokenizer_config.json", "*.safetensors", "*processor_config.json")


@dataclass(frozen=True)
class Pretrained(Model):
    """A model from a folder or a hub.

    path: where the model is: a folder, its URL (s3://BUCKET/LLAVA; each node fetches it once), or a hub name.
    revision: the commit of a hub name, required there: it stands for the weights in every stage key. A branch
        or a tag is taken for the commit that was fetched last.
    dtype: number type of the frozen base; the LoRA weights are always fp32.
    four_bit: whether to hold the frozen base in 4 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314: nf4,
        double quantisation, computed in bfloat16); needs bitsandbytes and a GPU.
    """

    architectures: ClassVar[tuple[str, ...]] = ()
    """Architectures that config.json may name; empty for any model that takes images."""

    path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    four_bit: bool = False

    def __post_init__(self) -> None:
        if (folder := fetching.as_path(self.path)).is_dir():  # a worker may run in another working folder
            object.__setattr__(self, "path", str(folder.absolute()))
        elif self.revision and not fetching.url_of(self.path):
            commit = hub_commit(self.path, self.revision)  # a branch may move to another commit
            object.__setattr__(self, "revision", commit or self.revision)

    @property
    def source_options(self) -> dict[str, Any]:
        """Arguments that tell `from_pretrained` which files to take."""
        if self.folder:
            return {"local_files_only": True}
        if not self.revision:
            raise StageError(f"model.path: {self.path} is no folder here, and a hub name needs a revision")
        return {"revision": self.revision}

    @property
    def source(self) -> str:
        """Folder or hub name, as `from_pretrained` takes it."""
        return str(self.folder or self.path)

    @property
    def folder(self) -> Path | None:
        """The model's folder; None for a hub name. A URL is fetched: PermanentStoreError, StoreError."""
        path = fetching.local_path(self.path)
        return path if path.is_dir() or path.is_absolute() else None

    def load_weights(self, model_class: Any) -> Any:
        """Load the model as an instance of a transformers class, in evaluation mode."""
        import torch

        options: dict[str, Any] = {"dtype": getattr(torch, self.dtype), "use_safetensors": True}
        if self.four_bit:
            from transformers import BitsAndBytesConfig

            options["device_map"] = {"": torch.cuda.current_device()}
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
        return model_class.from_pretrained(self.source, **options, **self.source_options).eval()

    def skeleton(self) -> Any:
        return skeleton(self.source) if self.folder else None

    def has_local_files(self) -> bool:
        return self.folder is not None

    def context_length(self) -> int:
        return context_length(self.source)

    def fingerprint(self) -> str:
        # The class and all settings: they say how images are prepared and weights are held.
        settings = {k: v for k, v in asdict(self).items() if k not in ("path", "revision")}
        source = hash_folder(self.folder) if self.folder else [self.path, self.revision]
        return digest([type(self).__name__, settings, source])

    def faults(self) -> list[tuple[str, str, str]]:
        faults = []
        if self.four_bit and find_spec("bitsandbytes") is None:
            faults.append(("four_bit", "needs bitsandbytes, which is not installed: pip install it", "true"))
        try:
            folder = self.folder
        except PermanentStoreError as error:
            return [*faults, ("path", f"must be there, and readable from here: {error}", "")]
        return [*faults, *(self.revision_faults() if folder is None else self.folder_faults(folder))]

    def revision_faults(self) -> Iterator[tuple[str, str, str]]:
        """Yield a fault where a hub name has no commit."""
        if not self.revision:
            yield "revision", "is required for a hub name: the commit that stands for the weights", ""
        elif not COMMIT.fullmatch(self.revision):
            fetch = f"hf download {self.path} --revision {self.revision}"
            rule = "must be a commit, 40 hex digits: a branch may stand for other weights tomorrow; "
            rule += f"`{fetch}` fetches the branch, and its commit is then known here"
            yield "revision", rule, repr(self.revision)

    def folder_faults(self, folder: Path) -> Iterator[tuple[str, str, str]]:
        """Yield the faults of a model's folder: files that are missing, or that are never read."""
        if not folder.is_dir():
            yield "path", "no such folder", repr(self.path)
            return
        if (folder / "adapter_config.json").is_file():  # transformers would load the model that it names
            rule = (
                "must hold a whole model, and holds an adapter to another one: merge the two, and save that"
            )
            yield "path", rule, repr(self.path)
            return
        missing = [name for name in REQUIRED_FILES if not any(folder.glob(name))]
        if "*.safetensors" in missing and any(folder.glob("*.bin")):
            missing.remove("*.safetensors")
            yield (
                "path",
                "must hold safetensors; its weights are pickles, which are never read",
                repr(self.path),
            )
        for name in missing:
            yield "path", f"must hold {name}", repr(self.path)
        if "config.json" not in missing:
            yield from self.config_faults(folder)

    def config_faults(self, folder: Path) -> list[tuple[str, str, str]]:
        """List why config.json describes a model that cannot be used."""
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError:
            return [("path", "its config.json must be JSON", repr(self.path))]
        architectures = config.get("architectures") or []
        if self.architectures and architectures and not set(architectures) & set(self.architectures):
            rule = f"must hold a {' or '.join(self.architectures)}; for others there is the model `auto`"
            return [("path", rule, ", ".join(architectures))]
        if "vision_config" not in config:
            rule = "must hold a model that takes images: its config.json has no vision_config"
            return [("path", rule, ", ".join(architectures) or repr(self.path))]
        return []


def context_length(folder: str | Path) -> int:
    """Return the context length that a folder's config.json states for the language model; 0 for none."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 0


def skeleton(folder: str | Path) -> Any:
    """Build the model that a folder's config.json describes, without memory for weights."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)
