"""Mock-ups of UCIT and VQAv2-10 in their folder layouts, a few kilobytes each, and a model to go with them.

    python tests/mock_benchmarks.py FOLDER

    FOLDER/ucit/instructions/TASK/*.json    FOLDER/ucit/datasets/…             --data FOLDER/ucit
    FOLDER/vqav2/CL4VQA/{train,test}/*.json FOLDER/vqav2/data/{train,val}2014  --data FOLDER/vqav2
    FOLDER/llava                            a tiny LLaVA                       model: {path: FOLDER/llava}

File names, record keys and forms of ids are those of the benchmarks; questions, answers and
images are generated. With `shared_ids`, training records share ids where those of UCIT do: VizWiz and
Flickr30k number their images, which have several records each, and CLEVR has some numbers twice.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dgg_ray.models import embedded

CAPTION = "What can be seen in this picture?\nDescribe it in one short sentence."
ONE_WORD = "Answer with a single word or phrase."
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (40, 60, 200), "grey": (128, 128, 128)}
NAMES = tuple(COLOURS)

UCIT = {  # file names in instructions/TASK, and their numbers of records in the mock-up
    "ImageNet-R": ({"train": "train.json", "test": "test_3000.json"}, 10, 4),
    "ArxivQA": ({"train": "train_4w.json", "test": "test_3000.json"}, 12, 3),
    "VizWiz": ({"train": "train.json", "test": "test_3000.json"}, 14, 5),
    "IconQA": ({"train": "train.json", "test": "test_3000.json"}, 9, 6),
    "CLEVR": ({"train": "train_4w.json", "test": "test_3000.json"}, 11, 4),
    "Flickr30k": ({"train": "train_brief_4w.json", "test": "test_3000.json"}, 8, 3),
}
CAPTIONED = ("VizWiz", "Flickr30k")
PER_PICTURE = {"VizWiz": 2, "Flickr30k": 2}  # training records of one image, one caption each
VQAV2 = {  # training and test records of each subtask, in the published order
    "recognition": (10, 5),
    "location": (6, 2),
    "judge": (12, 6),
    "commonsense": (7, 3),
    "count": (9, 4),
    "action": (8, 3),
    "color": (5, 2),
    "type": (6, 3),
    "subcategory": (7, 2),
    "causal": (4, 1),
}


def ucit(folder: Path, shared_ids: bool = True) -> Path:
    """Write UCIT's six tasks, with captions in COCO's form for the two that have them."""
    for task, (files, train, test) in UCIT.items():
        instructions = folder / "instructions" / task
        train_records = [train_record(task, i, shared_ids) for i in range(train)]
        test_records = [record_of_test_split(task, i) for i in range(test)]
        draw(folder / "datasets", train_records + test_records)
        write(instructions / files["train"], train_records)
        write(instructions / files["test"], test_records)
        if task in CAPTIONED:
            write(instructions / "val_coco_type_3000.json", captions(test_records))
    return folder


def vqav2(folder: Path) -> Path:
    """Write the ten subtasks of VQAv2."""
    for number, (task, (train, test)) in enumerate(VQAV2.items()):
        train_records, test_records = (
            [vqa_record(task, split, 1000 * number + i) for i in range(count)]
            for split, count in (("train", train), ("test", test))
        )
        draw(folder / "data", train_records + test_records)
        write(folder / "CL4VQA" / "train" / f"train_q_{task}.json", train_records)
        write(folder / "CL4VQA" / "test" / f"test_q_{task}.json", test_records)
    return folder


def model(folder: Path) -> Path:
    """Write a stand-in for LLaVA-1.5-7B: the same classes and files, with four megabytes."""
    return Path(shutil.copytree(embedded.FOLDER, folder))


# -- UCIT's records --------------------------------------------------------------------------------


def train_record(task: str, i: int, shared_ids: bool) -> dict[str, Any]:
    """Return record i of a training file: a conversation about image k."""
    k = i // PER_PICTURE.get(task, 1)
    text, answer = question(task, i)
    says = [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": answer}]
    key = "question_id" if task in (*CAPTIONED, "IconQA") else "id"
    number = (0 if task == "CLEVR" and i == 1 else k) if shared_ids else i
    id_: str | int = {"VizWiz": f"{number:08d}", "CLEVR": number}.get(task, str(number))
    return {key: id_, "image": picture(task, "train", k), "conversations": says}


def record_of_test_split(task: str, i: int) -> dict[str, Any]:
    text, answer = question(task, i + 1)
    return {"question_id": str(i), "image": picture(task, "test", i), "text": text, "answer": answer}


def question(task: str, i: int) -> tuple[str, str]:
    """Return the question and the answer of record i of a task."""
    colour = NAMES[i % len(NAMES)]
    if task in CAPTIONED:
        return CAPTION, f"a plain {colour} card number {i}"
    if task == "ArxivQA":
        options = "\n".join(f"{letter}) {name}" for letter, name in zip("ABCD", NAMES, strict=True))
        reason = f"Most of the area is {colour}."
        text = f"Which colour fills the figure?\n{options}\n{reason}\nReply with the letter of the option."
        return text, "ABCD"[i % 4]
    if task == "IconQA" and i % 2:
        return "Which card is shown?\n0. red\n1. green\n2. blue\n3. grey\nReply with a number.", str(i % 4)
    if task == "CLEVR":
        return f"Take away 1 of {i + 1} cubes. How many cubes remain?\n{ONE_WORD}", str(i)
    return f"What is the object in the image?\n{ONE_WORD}", f"{colour} card"


def picture(task: str, split: str, i: int) -> str:
    """Return the image's name as the records have it: relative to `datasets`."""
    val = "train" if split == "train" else "val"
    return {
        "ImageNet-R": f"ImageNet-R/{split}/n0144{i % 3}537/{split}_{i}.jpg",
        "ArxivQA": f"ArxivQA/images/{split}-{i}.jpg",
        "VizWiz": f"VizWiz/{val}/VizWiz_{val}_{i:08d}.jpg",
        "IconQA": f"IconQA/iconqa_data/iconqa/{val}/fill_in_blank/{i}/image.png",
        "CLEVR": f"CLEVR/images/{val}/CLEVR_{val}_{i:06d}.png",
        "Flickr30k": f"Flickr30k/{val}/{1000092795 + i + 1000 * (val == 'val')}.jpg",
    }[task]


def captions(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return two captions for each image, in COCO's form; images are named by their file names."""
    images = [{"id": n, "file_name": Path(r["image"]).name} for n, r in enumerate(records, start=1)]
    notes = [
        {"id": 2 * n + k, "image_id": n, "caption": text}
        for n, r in enumerate(records, start=1)
        for k, text in enumerate((r["answer"], f"one card, {r['answer']}"))
    ]
    return {"images": images, "annotations": notes}


# -- VQAv2's records -------------------------------------------------------------------------------


def vqa_record(task: str, split: str, i: int) -> dict[str, Any]:
    folder = "train2014" if split == "train" else "val2014"
    image = f"{folder}/COCO_{folder}_{i:012d}.jpg"
    text, answer = f"Which {task} fits this card?\n{ONE_WORD}", NAMES[i % len(NAMES)]
    if split == "test":
        return {"question_id": f"{i}000", "image": image, "text": text, "answer": answer}
    says = [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": answer}]
    return {"id": f"{i}001", "image": image, "conversations": says}


# -- files -----------------------------------------------------------------------------------------


def draw(root: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write the images that the records name: one colour each, in two sizes, none of them square."""
    for i, image in enumerate(dict.fromkeys(record["image"] for record in records)):
        path = root / image
        path.parent.mkdir(parents=True, exist_ok=True)
        r, g, b = COLOURS[NAMES[i % len(NAMES)]]
        Image.new("RGB", (24, 16) if i % 2 else (16, 24), (r, g, b + i % 50)).save(path)


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    root = Path(sys.argv[1])
    print(ucit(root / "ucit"), vqav2(root / "vqav2"), model(root / "llava"), sep="\n")
