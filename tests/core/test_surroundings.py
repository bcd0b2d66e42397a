"""What a machine may lack, and a process has all the same."""

import os
import tempfile
from pathlib import Path

import pytest

from dgg_ray.core import surroundings
from dgg_ray.core.errors import DggError


def test_without_a_home_there_is_one_that_can_be_written(tmp_path, monkeypatch):
    def nobody(uid):
        raise KeyError(uid)

    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    surroundings.prepare()
    home = Path.home()
    assert home.parent == tmp_path
    assert os.access(home, os.W_OK)
    assert home.stat().st_mode & 0o777 == 0o700
    assert os.environ["USER"] == f"uid{os.getuid()}"


def test_a_home_that_is_there_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    surroundings.prepare()
    assert os.environ["HOME"] == str(tmp_path)


def test_a_home_of_ones_own_that_can_only_be_read_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    surroundings.prepare()
    assert os.environ["HOME"] == str(tmp_path)


@pytest.mark.parametrize("home", ["/", "/no/such/folder", __file__])
def test_a_home_that_is_no_folder_or_anothers_is_replaced(tmp_path, monkeypatch, home):
    """A container gives `/`, which is root's, to a user in no list."""
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(surroundings, "owned", lambda folder: folder != Path(home))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    surroundings.prepare()
    assert Path.home().parent == tmp_path


def test_rays_folder_is_short_whatever_the_temporary_one_is(tmp_path, monkeypatch):
    long = tmp_path / ("a" * 40)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = Path(surroundings.short_folder())
    try:
        assert folder.parent != long
        assert len(os.fsencode(folder.parent)) <= surroundings.SHORT
    finally:
        folder.rmdir()


def test_where_no_short_folder_can_be_written_it_is_said_what_to_set(monkeypatch):
    def full(*_, **__):
        raise OSError("no space")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(DggError, match="Set TMPDIR"):
        surroundings.short_folder()


def test_a_deleted_working_folder_is_left_for_one_that_is_there(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert surroundings.folder_is_gone()
    surroundings.leave_deleted_folder()
    assert os.getcwd() == "/"
