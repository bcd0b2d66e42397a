"""Stages that stand for any, and files to write and read back; light, as other processes import it too."""

from pathlib import Path

from dgg_ray.contracts import Adapter, Strategy, Training
from dgg_ray.stages import Data, path


def some_stages(count=2):
    data = [Data(f"tâche {i}", {"train": f"digest {i}"}, {"train": 1}, "exact_match") for i in range(count)]
    return path("model", Adapter(), Training(), Strategy(), 0, data)


def weights(text):
    def fill(folder: Path):
        (folder / "adapter").mkdir()
        (folder / "adapter" / "poids – 重み.txt").write_text(text)
        (folder / "empty").write_bytes(b"")

    return fill


def read_weights(folder):
    return (folder / "adapter" / "poids – 重み.txt").read_text()
