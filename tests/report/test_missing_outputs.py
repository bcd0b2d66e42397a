"""If an optional output fails, the study still finishes, shows its results, and names what is missing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from dgg_ray import cli
from dgg_ray.analysis import load, search_summary
from dgg_ray.analysis.load import load_results
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.report import console, page, page_sections

STUDY = """\
name: tiny
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 16, validation: 10, test: 12}
  - {name: words, reader: embedded, train: 16, validation: 12, test: 10}
strategy: {name: dgg, alpha: 0.2, buffer: 4}
training: {epochs: 1, batch_size: 8, learning_rate: 5e-3}
seeds: [0, 1]
search: {space: {strategy.alpha: [0, 0.5, 1.0]}, trials: 3}
protocol: {max_new_tokens: 2}
workers: {engine: simulated}
"""
pytestmark = pytest.mark.whole
PYTHON = [sys.executable, "-m", "dgg_ray"]


@pytest.fixture(scope="module", autouse=True)
def one_figure():
    """Draw one figure in this process: all of them take seconds, and the reports here are many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "figure_names", lambda: ["search"])
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("study") / "tiny.yaml"
    file.write_text(STUDY, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def done(study, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("done") / "out"
    assert cli.main(["run", str(study), "--out", str(out), "--local", "--quiet"]) == 0
    return out


@pytest.fixture
def out(done, tmp_path) -> Path:
    """A copy of the finished study's folder that a test may damage."""
    return Path(shutil.copytree(done, tmp_path / "out"))


def run_again(study: Path, out: Path) -> int:
    return cli.main(["run", str(study), "--out", str(out), "--local", "--quiet"])


def missing_lines(errors: str) -> list[str]:
    """Select the lines that name failed outputs."""
    ends = (" is missing: ", " is not kept: ", " was not done: ")
    return [line for line in errors.splitlines() if any(end in line for end in ends)]


def block_path(path: Path) -> None:
    """Replace a file by a folder that is not empty, so that it cannot be written."""
    path.unlink()
    (path / "x").mkdir(parents=True)


@pytest.mark.parametrize(
    "accessory",
    ["table.parquet", "table.csv", "settings.csv", "costs.csv", "table.tex", "search.db"],
)
def test_a_file_that_cannot_be_written_is_named_and_all_others_are_written(study, out, accessory, capsys):
    block_path(out / accessory)
    (out / "report.html").unlink()
    assert run_again(study, out) == 0
    said = capsys.readouterr()
    (line,) = missing_lines(said.err)
    assert accessory.partition(".")[0] in line
    assert f"report: {out / 'report.html'}" in said.out
    assert (out / "report.html").is_file()
    logged = [json.loads(text) for file in (out / "logs").iterdir() for text in file.read_text().splitlines()]
    assert any(event["event"] == "output failed" and event["traceback"] for event in logged)


def test_the_page_is_written_even_if_no_figure_can_be(study, out, capsys):
    shutil.rmtree(out / "figures")
    (out / "figures").touch()
    assert run_again(study, out) == 0
    assert "the folder of the figures is missing" in capsys.readouterr().err
    assert "<h1>tiny</h1>" in (out / "report.html").read_text(encoding="utf-8")


def test_the_summary_is_printed_even_if_the_page_cannot_be_written(study, out, capsys):
    block_path(out / "report.html")
    assert run_again(study, out) == 0
    said = capsys.readouterr()
    assert "the report is missing: IsADirectoryError" in said.err
    assert "report.html" not in said.out
    assert "FAA" in said.out


@pytest.mark.parametrize(
    ("module", "part", "name"),
    [
        (search_summary, "summarize_search", "the course of the search"),
        (search_summary, "remaining_work", "what is left to do"),
        (load, "spending", "what was spent"),
        (load, "study_facts", "the environment"),
        (load, "stage_costs", "the costs"),
        (page, "draw_figure", "the figure search"),
    ],
)
def test_a_part_of_the_results_that_fails_is_named_and_nothing_else_is_missing(
    done, module, part, name, monkeypatch
):
    def broken(*_, **__):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(module, part, broken)
    optional = OptionalOutputs()
    loaded = load.load_results(done, optional)
    page.write_report(loaded, done, optional)
    assert f"{name} is missing: ZeroDivisionError: division by zero" in optional.messages
    assert len(loaded.table) == len(load_results(done).table)
    assert loaded.recommended == load.load_results(done).recommended


def test_the_table_and_the_page_are_written_even_if_the_verdict_fails(out, monkeypatch, capsys):
    def broken(*_):
        raise IndexError("no row")

    for module in (console, page, page_sections):
        monkeypatch.setattr(module, "verdict", broken)
    assert cli.main(["best", str(out)]) == 0
    said = capsys.readouterr()
    assert "the verdict is missing: IndexError: no row" in said.err
    assert "joint" in said.out
    (out / "report.html").unlink()
    assert cli.main(["report", str(out)]) == 0
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "the verdict is missing: IndexError: no row" in html
    assert "forgetting" in html


def test_a_study_whose_next_block_is_already_trained_has_a_report(tmp_path, capsys):
    """Two seeds, then one of them: a further block costs nothing, and nothing is divided by that."""
    text = STUDY[: STUDY.index("search:")] + STUDY[STUDY.index("protocol:") :]
    file, out = tmp_path / "study.yaml", tmp_path / "out"
    for seeds in ("[0, 1]", "[0]"):
        file.write_text(text.replace("[0, 1]", seeds), encoding="utf-8")
        assert run_again(file, out) == 0
    assert missing_lines(capsys.readouterr().err) == []
    for command in ("best", "report", "robustness", "status"):
        assert cli.main([command, str(out)]) == 0
    assert load.load_results(out).remaining.block is not None


def test_another_studys_folder_is_refused_before_anything_is_replaced(study, out, tmp_path, capsys):
    (tmp_path / "other.yaml").write_text(STUDY.replace("name: tiny", "name: other"), encoding="utf-8")
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    for command in ("plan", "run", "profile"):
        assert cli.main([command, str(tmp_path / "other.yaml"), "--out", str(out)]) == 2
        assert "holds the results of another study, 'tiny'" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


def test_for_an_edited_study_the_changes_are_printed_and_the_earlier_one_is_kept(out, tmp_path, capsys):
    (tmp_path / "edited.yaml").write_text(STUDY.replace("[0, 0.5, 1.0]", "[0, 0.5]"), encoding="utf-8")
    assert run_again(tmp_path / "edited.yaml", out) == 0
    said = capsys.readouterr().err
    assert "search.space.strategy.alpha.values: (0, 0.5, 1.0) → (0, 0.5)" in said
    assert "1.0" in (out / "study.previous.json").read_text(encoding="utf-8")


# -- processes -------------------------------------------------------------------------------------


def start(*command: object, before: Sequence[str] = (), **how) -> subprocess.Popen:
    words = [*before, *PYTHON, *map(str, command)]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "latin-1"}
    return subprocess.Popen(words, **(pipe | how))


def test_a_run_whose_output_is_closed_finishes(study, tmp_path):
    out = tmp_path / "out"
    run = start("run", study, "--out", out, "--local")
    assert run.stdout
    assert run.stderr
    run.stdout.close()
    run.stderr.close()
    assert run.wait(120) == 0
    assert (out / "report.html").is_file()


def test_a_run_without_standard_streams_finishes(study, tmp_path):
    out = tmp_path / "out"
    words = " ".join([*PYTHON, "run", str(study), "--out", str(out), "--local"])
    assert subprocess.run(f"{words} <&- >&- 2>&-", shell=True, timeout=600, check=False).returncode == 0
    assert (out / "report.html").is_file()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16"])
def test_letters_that_the_terminal_lacks_become_question_marks(done, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "20", "TERM": "dumb"}
    best = start("best", done, env=environment)
    said, errors = best.communicate(timeout=600)
    assert best.returncode == 0
    assert "Traceback" not in errors
    assert "FAA" in said.replace("\0", "")
    assert ("?" in said) == (encoding != "utf-16")  # the minus and the dash of joint's row


def test_signals_end_a_run_as_ctrl_c_does(tmp_path):
    text = STUDY.replace("workers: {engine: simulated}\n", "").replace("epochs: 1", "epochs: 500")
    (tmp_path / "long.yaml").write_text(text, encoding="utf-8")
    for number, ending in enumerate((signal.SIGTERM, signal.SIGHUP)):
        out = tmp_path / f"out{number}"
        words = ("run", tmp_path / "long.yaml", "--out", out, "--local")
        run = start(*words, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 120
            while not list(out.glob("logs/*")):
                assert run.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            run.send_signal(ending)
            _, errors = run.communicate(timeout=600)
        finally:
            run.kill()
        assert run.returncode == 130
        assert "finished stages are kept" in errors
        assert "Traceback" not in errors


def test_a_run_under_nohup_outlives_its_terminal(study, tmp_path):
    out = tmp_path / "out"
    words = ["nohup", *PYTHON, "run", str(study), "--out", str(out), "--local"]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(words, stdout=log, stderr=log)
    while (
        psutil.Process(run.pid).cmdline()[:1] != PYTHON[:1]
    ):  # until nohup has become Python, the signal ends it
        assert run.poll() is None
        time.sleep(0.05)
    while run.poll() is None:
        run.send_signal(signal.SIGHUP)
        time.sleep(0.3)
    assert run.returncode == 0, (tmp_path / "log").read_text()
    assert (out / "report.html").is_file()


def test_an_unknown_user_without_home_and_temporary_folder_runs_a_study(study, tmp_path):
    if os.getuid() or not shutil.which("setpriv"):
        pytest.skip("only root becomes another user")
    place = tmp_path / "of nobody – ü"
    place.mkdir()
    shutil.copy(study, place)
    for folder in place, *place.parents:
        if folder.stat().st_mode & 0o005 != 0o005:  # pytest's own are root's alone
            folder.chmod(0o755)
    os.chown(place, 12345, 12345)
    allowed = {"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "many"}
    allowed["TMPDIR"] = str(tmp_path / "nowhere")
    command = ("run", place / study.name, "--out", place / "out", "--local")
    # The interpreter may lie in a folder of root's: reading stays allowed, writing does not.
    become = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups"]
    become += ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    run = start(*command, env=allowed, cwd="/", before=become)
    _, errors = run.communicate(timeout=600)
    assert run.returncode == 0, errors
    assert "Traceback" not in errors
    assert (place / "out" / "report.html").is_file()
