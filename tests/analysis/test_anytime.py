"""A report is valid at every moment of a study: it says how far it is, and names what is missing."""

import re

import pytest

from dgg_ray import cli
from dgg_ray.analysis import load, next_steps
from dgg_ray.report import report
from dgg_ray.training.simulated import MemoryStore, Simulated

pytestmark = pytest.mark.whole
STUDY = """\
name: cut
model: embedded
tasks:
  - {{name: digits, reader: embedded, train: 24, validation: 10, test: 12}}
  - {{name: words, reader: embedded, train: 24, validation: 12, test: 10}}
  - {{name: charts, reader: embedded, train: 32, validation: 10, test: 10}}
strategy: {{name: dgg, buffer: 4}}
orders: {{design: random, count: 2}}
search:
  space: {{strategy.alpha: {{per_task: [0, 0.3, 1.0]}}}}
{search}
protocol: {{held_out: 2, baselines: [runner_up, constant, two_task, replay, joint]}}
workers: {{engine: simulated}}
simulation: {{place: 0.02}}
"""
SEARCHES = {
    "stagewise": "  method: stagewise\n  values_per_task: 2\n  beam: 1\n  audit_fraction: 0.3",
    "race": "  method: tpe\n  trials: 6\n  prune_level: 0.4",
    "front": "  method: nsga2\n  trials: 4\n  objective: [stability, plasticity]\n"
    "  constraints: plasticity >= finetune - 5 points",
}


@pytest.fixture
def stops(monkeypatch):
    """Ctrl-C after so many stages or sittings; `stops(None)` lets it run."""
    obtain, left = Simulated.obtain, [0]

    def counted(self, item):
        if isinstance(self.store, MemoryStore):  # what is only foreseen
            return obtain(self, item)
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        obtain(self, item)

    def after(count):
        left[0] = -1 if count is None else count
        monkeypatch.setattr(Simulated, "obtain", obtain if count is None else counted)

    return after


@pytest.mark.parametrize("search", SEARCHES)
def test_a_study_that_is_cut_anywhere_has_a_report_that_holds(search, stops, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "figure_names", lambda: ["search", "pareto"])
    file, out = tmp_path / "cut.yaml", tmp_path / "out"
    file.write_text(STUDY.format(search=SEARCHES[search]))
    run = ["run", str(file), "--out", str(out), "--local", "--quiet"]
    stops(0)
    assert cli.main(run) == 130
    assert cli.main(["report", str(out)]) == 1
    assert "run the study first" in capsys.readouterr().err

    said = []
    for step in (1, 12, 17, 20, 24, 25, None):
        stops(step)
        ended = cli.main(run)
        assert ended in (0, 130)
        found = load.load(out)
        page = report.write(found, out).read_text(encoding="utf-8")
        said.append("\n".join(report.answer(found)))
        assert "nan" not in re.sub("<img[^>]*>", "", page).replace("finance", "")
        check(found, said[-1])
        if ended == 0:
            break
    assert ended == 0
    assert said[0].startswith("No setting has been judged")
    assert "The search is not over" in said[0]
    assert any("So far the best is" in text or "Not compared yet" in text for text in said)
    assert "not over" not in said[-1]
    assert "The final blocks took no part in the choice." in said[-1]


def check(found, text):
    """What holds of every report."""
    search, steps = found.search, next_steps.sentences(found)
    assert ("The search is not over" in text) == (not search.finished)
    assert (found.recommended is None) == ("none is recommended" in text)
    assert len(search.candidates) == len({c.setting for c in search.candidates})
    left = found.ahead.search[0] + found.ahead.comparison[0]
    assert left or search.finished
    assert found.ahead.room == 6 - 2 - 2  # of 3! orders two are the search's, and two held out
    assert any(step.startswith("Finish") for step in steps) == bool(left) or len(steps) == next_steps.MOST
    if found.recommended:
        words = {"runner_up": "the runner-up", "two_task": "α chosen on the first two tasks, then kept"}
        for label in found.terms.baselines:  # compared, or said why not
            assert words.get(label, label.replace("constant", "the best constant α")) in text
