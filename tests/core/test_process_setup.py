"""The process is set up where the machine lacks a home, a user name or a short path."""

import os
import tempfile
from pathlib import Path

import pytest

from dgg_ray.core import process_setup
from dgg_ray.core.errors import DggError


def test_a_user_without_a_home_gets_a_writable_one(tmp_path, monkeypatch):
    def nobody(uid):
        raise KeyError(uid)

    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    process_setup.prepare_process()
    home = Path.home()
    assert home.parent == tmp_path
    assert os.access(home, os.W_OK)
    assert home.stat().st_mode & 0o777 == 0o700
    assert os.environ["USER"] == f"uid{os.getuid()}"


def test_a_writable_home_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    process_setup.prepare_process()
    assert os.environ["HOME"] == str(tmp_path)


def test_a_read_only_home_of_the_user_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    process_setup.prepare_process()
    assert os.environ["HOME"] == str(tmp_path)


@pytest.mark.parametrize("home", ["/", "/no/such/folder", __file__])
def test_a_home_that_is_no_folder_or_belongs_to_another_user_is_replaced(tmp_path, monkeypatch, home):
    """A container gives `/`, which belongs to root, to a user without an entry in the user list."""
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(process_setup, "owned", lambda folder: folder != Path(home))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    process_setup.prepare_process()
    assert Path.home().parent == tmp_path


def test_rays_folder_is_short_even_if_the_temporary_folder_is_not(tmp_path, monkeypatch):
    long = tmp_path / ("a" * 40)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = Path(process_setup.make_short_folder())
    try:
        assert folder.parent != long
        assert len(os.fsencode(folder.parent)) <= process_setup.MAX_FOLDER_BYTES
    finally:
        folder.rmdir()


def test_the_error_for_no_short_folder_names_the_variable_to_set(monkeypatch):
    def full(*_, **__):
        raise OSError("no space")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(DggError, match="Set TMPDIR"):
        process_setup.make_short_folder()


def test_a_process_leaves_a_deleted_working_folder(tmp_path, monkeypatch):
    deleted = tmp_path / "deleted"
    deleted.mkdir()
    monkeypatch.chdir(deleted)
    deleted.rmdir()
    assert process_setup.working_folder_is_deleted()
    process_setup.leave_deleted_folder()
    assert os.getcwd() == "/"
