"""Which weights a model is."""

import json

import pytest
from huggingface_hub import constants

from dgg_ray.core.file_hashes import hash_folder, hub_commit
from dgg_ray.models.llava_1_5 import Llava15

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


@pytest.fixture()
def hub(tmp_path, monkeypatch):
    """The folder of refs of a hub's cache, in which `main` was fetched."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--of--mine" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    return refs


def test_a_branch_stands_for_the_commit_that_was_fetched(hub):
    assert hub_commit("of/mine", "main") == COMMIT
    assert Llava15("of/mine", revision="main").source_options == {"revision": COMMIT}
    assert Llava15("of/mine", revision="main").faults() == []


def test_a_branch_that_moved_is_another_model(hub):
    before = Llava15("of/mine", revision="main").fingerprint()
    assert before == Llava15("of/mine", revision=COMMIT).fingerprint()
    (hub / "main").write_text(OTHER)
    assert Llava15("of/mine", revision="main").fingerprint() != before


@pytest.mark.parametrize("revision", ["dev", "v1.0", COMMIT[:8], "../refs"])
def test_a_revision_without_a_known_commit_is_refused_with_the_remedy(hub, revision):
    assert hub_commit("of/mine", revision) == ""
    ((setting, rule, found),) = Llava15("of/mine", revision=revision).faults()
    assert (setting, found) == ("revision", repr(revision))
    assert f"hf download of/mine --revision {revision}" in rule


def test_a_commit_is_recognised_in_upper_and_lower_case(hub):
    assert hub_commit("of/other", COMMIT.upper()) == COMMIT


@pytest.fixture()
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "additional_chat_templates" / "short.jinja").write_text("{{ messages }}")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "additional_chat_templates/short.jinja",
        "tokenizer.model",
        "a/b/c.json",
    ],
)
def test_every_file_that_bears_on_an_answer_is_hashed(folder, name):
    before = hash_folder(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("other")
    assert hash_folder(folder) != before  # in one process, too


@pytest.mark.parametrize(
    "name", ["README.md", ".gitattributes", "pytorch_model.bin", ".cache/lock.json", "x/y.onnx"]
)
def test_notes_hidden_files_and_pickles_are_not_hashed(folder, name):
    before = hash_folder(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("other")
    assert hash_folder(folder) == before


def test_a_renamed_file_changes_the_hash(folder):
    before = hash_folder(folder)
    (folder / "additional_chat_templates" / "short.jinja").rename(folder / "short.jinja")
    assert hash_folder(folder) != before


def test_links_are_followed_and_may_form_cycles(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "long.jinja").write_text("a")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    before = hash_folder(folder)
    (tmp_path / "elsewhere" / "long.jinja").write_text("b")
    assert hash_folder(folder) != before


def test_a_folder_that_names_another_model_is_refused(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "of/other"}))
    ((setting, rule, _),) = Llava15(str(folder)).faults()
    assert setting == "path"
    assert "merge the two" in rule
