"""A report is valid at every moment of a study: it says how far the study is, and names what is missing."""

import re

import pytest

from dgg_ray import cli
from dgg_ray.analysis import load, next_steps
from dgg_ray.report import page, summary
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.training.simulated_runner import SimulatedRunner

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
    "pruned": "  method: tpe\n  trials: 6\n  prune_level: 0.4",
    "limited": "  method: stage_model\n  stages: 30",
    "pareto": "  method: nsga2\n  trials: 4\n  objective: [stability, plasticity]\n"
    "  constraints: plasticity >= finetune - 5 points",
}


@pytest.fixture
def stops(monkeypatch):
    """Interrupt after a number of work items; `stops(None)` lets the study run."""
    run, left = SimulatedRunner.run, [0]

    def counted(self, item):
        if isinstance(self.store, MemoryStore):  # a dry run
            return run(self, item)
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        run(self, item)

    def after(count):
        left[0] = -1 if count is None else count
        monkeypatch.setattr(SimulatedRunner, "run", run if count is None else counted)

    return after


@pytest.mark.parametrize("search", SEARCHES)
def test_a_study_interrupted_at_any_moment_has_a_valid_report(search, stops, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "figure_names", lambda: ["search", "pareto"])
    file, out = tmp_path / "cut.yaml", tmp_path / "out"
    file.write_text(STUDY.format(search=SEARCHES[search]))
    run = ["run", str(file), "--out", str(out), "--local", "--quiet"]
    stops(0)
    assert cli.main(run) == 130
    assert cli.main(["report", str(out)]) == 1
    assert "run the study first" in capsys.readouterr().err

    texts = []
    for step in (1, 12, 17, 20, 24, 25, None):
        stops(step)
        ended = cli.main(run)
        assert ended in (0, 130)
        results = load.load_results(out)
        html = page.write_report(results, out).read_text(encoding="utf-8")
        texts.append("\n".join(summary.summary_sentences(results)))
        assert "nan" not in re.sub("<img[^>]*>", "", html).replace("finance", "")
        check(results, texts[-1])
        if ended == 0:
            break
    assert ended == 0
    assert texts[0].startswith("No setting has been evaluated")
    assert "The search is not over" in texts[0]
    assert any("So far the best is" in text or "Not compared yet" in text for text in texts)
    assert "not over" not in texts[-1]
    assert "The final blocks took no part in the choice." in texts[-1]


def check(results, text):
    """Check what every report must satisfy."""
    search, steps = results.search, next_steps.next_step_sentences(results)
    assert ("The search is not over" in text) == (not search.finished)
    assert (results.recommended is None) == ("none is recommended" in text)
    if search.method == "stage_model":
        assert search.finished or re.search(r"The search is not over: \d+ of about \d+ settings", text)
        assert search.expected_settings >= len(search.candidates)
        assert "highest score where" not in text  # another setting may have it
        assert "scored highest where" not in text
    assert len(search.candidates) == len({c.setting for c in search.candidates})
    left = results.remaining.search[0] + results.remaining.comparison[0]
    assert left or search.finished
    assert results.remaining.room == 6 - 2 - 2  # of 3! orders two are in the search, and two are held out
    assert (
        any(step.startswith("Finish") for step in steps) == bool(left) or len(steps) == next_steps.MAX_STEPS
    )
    if results.recommended:
        words = {"runner_up": "the runner-up", "two_task": "α chosen on the first two tasks, then kept"}
        for label in results.setup.baselines:  # compared, or with a reason why not
            assert words.get(label, label.replace("constant", "the best constant α")) in text
