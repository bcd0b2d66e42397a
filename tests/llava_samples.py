"""A small task in LLaVA's file format, and the reader's result."""

import json

import pytest
from PIL import Image

from dgg_ray.core.errors import StudyError
from dgg_ray.readers.llava import Llava


def sample(folder):
    """Write seven images for training and three for the test; each has its own shade."""
    for i in range(10):
        write_image(folder / f"{i}.png", shade=20 * i)
    write(folder / "train.json", [turn(f"a{i}", f"{i}.png", f"answer {i}") for i in range(7)])
    write(folder / "test.json", [question(f"q{i}", f"{i}.png", f"answer {i}") for i in range(7, 10)])
    return folder


def write_image(path, shade=0, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 255 - shade, 7)).save(path)


def write(path, records):
    path.write_text(json.dumps(records, indent=1), encoding="utf-8")


def edit(path, change):
    records = json.loads(path.read_text())
    change(records)
    write(path, records)


def turn(id_, image, answer, asked="<image>\nWhat is this?"):
    says = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": id_, "image": image, "conversations": says}


def question(id_, image, answer, text="What is this?"):
    return {"question_id": id_, "image": image, "text": text, "answer": answer}


def read(folder, **settings):
    files = {"train": folder / "train.json", "test": folder / "test.json", **settings}
    return Llava(**files).read("toy")


def faults(folder, **settings):
    with pytest.raises(StudyError) as caught:
        read(folder, **settings)
    return sorted(caught.value.faults, key=lambda fault: (fault.path, fault.line))


def only_fault(folder, **settings):
    (fault,) = faults(folder, **settings)
    return fault
