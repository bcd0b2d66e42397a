"""The numbers that figures show, and the figures of studies that lack something."""

import importlib
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from dgg_ray.analysis.archive import StageLosses
from dgg_ray.analysis.results import CELL_COLUMNS, ComparisonSetup, Results
from dgg_ray.report import figure_style, figures, page
from dgg_ray.report.figures import (
    alpha_effect,
    importance,
    learning_along,
    score_matrix,
    stability_plasticity,
    training_loss,
)
from dgg_ray.report.figures.stability_plasticity import metric_intervals, not_dominated

PARAMETERS = ("strategy.alpha.b", "strategy.alpha.c")
ALPHAS = {"d1": (0.1, 0.3), "d2": (0.5, 0.3), "ft": (np.nan, np.nan), "jt": (np.nan, np.nan)}
SCORES = {  # setting → R in the order a, b, c; seed 1 scores 0.1 less everywhere
    "d1": [[0.8], [0.7, 0.6], [0.6, 0.5, 0.9]],
    "d2": [[0.8], [0.9, 0.4], [0.8, 0.3, 0.9]],
    "ft": [[0.8], [0.3, 0.7], [0.2, 0.3, 1.0]],
    "jt": [[], [], [0.8, 0.7, 0.9]],
}


def small_study(settings=tuple(SCORES), seeds=(0, 1), parameters=PARAMETERS, recommended="d1") -> Results:
    strategy = {"f": "finetune", "j": "joint", "d": "dgg"}
    rows = [
        {
            **dict(zip(CELL_COLUMNS[:5], [setting, strategy[setting[0]], "a > b > c", seed, t], strict=True)),
            "trained_task": "a + b + c" if setting == "jt" else "abc"[t],
            "eval_task": "abc"[i],
            "split": "validation",
            "score": score - 0.1 * seed,
            "n": 10,
            "seconds": 0.0,
            **dict(zip(PARAMETERS, ALPHAS[setting], strict=True)),
        }
        for setting in settings
        for seed in seeds
        for t, scores in enumerate(SCORES[setting])
        for i, score in enumerate(scores)
    ]
    table = pd.DataFrame(rows)[[*CELL_COLUMNS, *PARAMETERS]]
    baselines = {"finetune": "ft", "joint": "jt"}
    return Results("small", "", table, parameters, ("faa",), recommended, baselines, [], pd.DataFrame())


def numbers_of(module, results: Results) -> pd.DataFrame:
    drawing = module.draw(results)
    assert drawing is not None
    return drawing[1]


def test_a_setting_is_a_point_of_its_stability_and_plasticity():
    points = numbers_of(stability_plasticity, small_study()).set_index("setting")
    assert points.loc["d1", ["stability", "plasticity"]].tolist() == pytest.approx([0.55 - 0.05, 0.75 - 0.05])
    assert np.isnan(points.loc["d1", "stability_high"])  # the two seeds of one order are too few
    assert points.loc["d1", "clusters"] == 2
    assert points.loc["d1", "alpha"] == pytest.approx((0.1 + 0.3) / 2)


def test_with_held_out_blocks_named_methods_are_placed_by_their_scores_there():
    terms = ComparisonSetup(
        search_blocks=(("a > b > c", 0),), final_blocks=(("a > b > c", 1),), held_out=True
    )
    points = numbers_of(stability_plasticity, replace(small_study(), setup=terms))
    first, second = points[points["setting"] == "d1"].to_dict("records")
    assert (first["kind"], second["kind"]) == ("setting", "compared")
    assert second["stability"] == pytest.approx(0.55 - 0.1)  # of the held-out seed alone
    assert not points.set_index("setting").loc["ft", "pareto"]  # it was not on the search's blocks
    assert points[points["setting"] == "d2"]["kind"].tolist() == ["setting"]


def test_a_cross_does_not_leave_the_scale_of_the_scores():
    index = pd.MultiIndex.from_tuples([("a > b", 0), ("b > a", 1), ("c > a", 2)], names=["order", "seed"])
    # 98, 90 and 100 %: by t 96 ± 13.1; by the logit 3.18 ± 3.42 the lower bound is 44 %
    row = metric_intervals(
        pd.DataFrame({"stability": [0.98, 0.9, 1.0], "plasticity": [0.02, 0.1, 0.0]}, index)
    )
    assert (row["stability_high"], row["plasticity_low"]) == (1, 0)
    assert row["stability_low"] == pytest.approx(0.44, abs=5e-3)


def test_joint_training_is_placed_by_its_scores_on_the_same_tasks():
    joint = numbers_of(stability_plasticity, small_study()).set_index("setting").loc["jt"]
    assert (joint["kind"], joint["pareto"]) == ("reference", False)
    assert joint[["stability", "plasticity"]].tolist() == pytest.approx([0.75 - 0.05, 0.8 - 0.05])


def test_a_curve_joins_the_settings_with_one_alpha_for_all_tasks():
    results = small_study(
        parameters=PARAMETERS[:1]
    )  # one searched α: each setting has the same for all tasks
    curve = numbers_of(stability_plasticity, results).query("kind == 'curve'")
    assert curve["alpha"].tolist() == pytest.approx([0.1, 0.5])
    assert curve["stability"].tolist() == pytest.approx([0.50, 0.50])
    assert curve["plasticity"].tolist() == pytest.approx([0.70, 0.60])


def test_settings_with_an_alpha_for_each_task_are_points_without_a_curve():
    data = numbers_of(stability_plasticity, small_study())
    assert "curve" not in set(data["kind"])
    assert not data["constant"].any()


def test_the_axes_of_stability_and_plasticity_go_from_0_to_100():
    figure, _ = stability_plasticity.draw(small_study())
    assert (*figure.axes[0].get_xlim(), *figure.axes[0].get_ylim()) == (0, 1, 0, 1)


def test_a_point_is_on_the_front_unless_another_is_nowhere_worse_and_somewhere_better():
    points = np.array([[0.2, 0.9], [0.5, 0.7], [0.4, 0.7], [0.8, 0.1], [0.5, 0.7]])
    assert not_dominated(points).tolist() == [True, True, False, True, True]


def test_the_effect_of_alpha_is_measured_right_after_the_tasks_own_stage():
    data = numbers_of(alpha_effect, small_study())
    assert set(data["task"][data["kind"] == "curve"]) == {"b"}  # c was trained with one α only
    curve = data[(data["kind"] == "curve")]
    assert curve["alpha"].tolist() == pytest.approx([0.1, 0.5])
    assert curve["new"].tolist() == pytest.approx([0.6 - 0.05, 0.4 - 0.05])
    assert curve["old"].tolist() == pytest.approx([0.7 - 0.8, 0.9 - 0.8])
    assert curve["gain"].tolist() == pytest.approx(
        [0, (-0.2 + 0.2) / 3]
    )  # the new task loses what the old gains
    assert curve["old_low"].isna().all()  # two blocks are too few for a band
    assert (data["kind"] == "stage").sum() == 4


def test_a_mask_is_split_into_its_unbroken_ranges():
    assert alpha_effect.unbroken_ranges(np.array([True, False, True, True])) == [(0, 0), (2, 3)]


def test_the_effect_of_alpha_is_shown_next_to_the_importance_of_parameters():
    data = numbers_of(importance, small_study()).set_index(["kind", "name"])["value"]
    assert data.to_dict() == pytest.approx(
        {("new", "b"): 0.2, ("old", "b"): 0.2}
    )  # two settings are too few for an importance


def test_the_effect_of_alpha_is_not_drawn_where_alpha_was_not_searched():
    assert alpha_effect.draw(small_study(parameters=())) is None


def test_the_line_along_the_sequence_is_the_mean_score_over_the_tasks_so_far():
    data = numbers_of(learning_along, small_study()).set_index(["label", "stage"])["score"]
    assert data["dgg"].tolist() == pytest.approx([0.8 - 0.05, 0.65 - 0.05, 2.0 / 3 - 0.05])
    assert data["joint"].to_dict() == pytest.approx({2: 0.8 - 0.05})


def test_the_score_matrix_has_the_mean_and_the_extremes_of_the_seeds():
    cells = numbers_of(score_matrix, small_study()).set_index(["label", "stage", "eval_task"])
    assert cells.loc[("finetune", 2, "c"), "score"] == pytest.approx(1.0 - 0.05)
    assert cells.loc[("finetune", 2, "c"), ["lowest", "highest", "seeds"]].tolist() == pytest.approx(
        [0.9, 1, 2]
    )
    assert ("finetune", 0, "b") not in cells.index
    assert len(cells.loc["joint"]) == 3


def test_the_score_matrix_has_a_panel_for_each_order_with_its_tasks_names():
    results = small_study()
    orders = [" > ".join(order) for order in permutations("abc")]
    table = pd.concat([results.table.assign(order=order) for order in orders])
    table["trained_task"] = [
        order.split(" > ")[t] for order, t in zip(table["order"], table["stage"], strict=True)
    ]
    figure, cells = score_matrix.draw(replace(results, table=table))
    drawn_panels = [ax for ax in figure.axes if ax.get_title(loc="left")]
    # six orders of four methods are too many: those of the chosen setting are drawn, all are in the CSV
    assert [ax.get_title(loc="left") for ax in drawn_panels] == [f"dgg, order {n}" for n in range(1, 7)]
    assert [t.get_text() for t in drawn_panels[2].get_xticklabels()] == ["b", "a", "c"]
    assert cells["order"].nunique() == 6
    assert set(cells["label"]) == {"dgg", "finetune", "joint"}


def test_training_losses_are_drawn_stage_by_stage_where_they_were_stored():
    results = small_study()

    class FakeArchive:
        def losses(self, run):
            return [StageLosses("a", 4, (2.0, 1.0)), StageLosses("b", 2, (1.5, 1.25))] if run[2] == 0 else []

    object.__setattr__(results, "archive", FakeArchive())
    data = numbers_of(training_loss, results)
    assert data["step"].tolist() == [2, 4, 1, 2]
    assert data["loss"].tolist() == [2.0, 1.0, 1.5, 1.25]
    assert data["position"].tolist() == [0, 0, 1, 1]
    assert training_loss.draw(small_study()) is None


def test_six_runs_are_drawn_and_the_numbers_of_all_are_written():
    results = small_study(seeds=range(8))

    class FakeArchive:
        def losses(self, run):
            return [StageLosses("a", 4, (2.0, 1.0))]

    object.__setattr__(results, "archive", FakeArchive())
    figure, data = training_loss.draw(results)
    assert sorted(set(data["seed"])) == list(range(8))
    assert len(figure.axes[0].lines) == 6


@pytest.mark.parametrize("name", page.figure_names())
@pytest.mark.parametrize("settings", [("d1",), ("jt",), tuple(SCORES)], ids="+".join)
def test_a_figure_is_drawn_or_has_no_data(name, settings):
    results = small_study(settings, seeds=(0,), recommended="d1" if "d1" in settings else None)
    drawing = importlib.import_module(f"dgg_ray.report.figures.{name}").draw(results)
    assert drawing is None or len(drawing[1])


def test_text_and_marks_have_enough_contrast_to_their_background():
    assert figure_style.contrast((0, 0, 0), (1, 1, 1)) == 21
    for level in np.linspace(0, 1, 101):
        colour = colormaps["cividis"](level)
        assert figure_style.contrast(colour, to_rgb(figure_style.text_colour(colour))) >= 4.5
    assert figure_style.contrast(to_rgb(figure_style.PALE), (1, 1, 1)) >= 3
    figure, _ = score_matrix.draw(small_study())
    drawn = [(ax.images[0], text) for ax in figure.axes if ax.images for text in ax.texts]
    assert drawn
    for image, text in drawn:
        x, y = map(round, text.get_position())
        behind = image.to_rgba(image.get_array())[y, x]
        assert figure_style.contrast(behind, to_rgb(text.get_color())) >= 4.5


def test_the_ticks_of_alpha_are_values_that_were_tried():
    assert alpha_effect.tick_values(np.array([0.0, 0.1, 0.3, 1.0])) == [0, 0.1, 0.3, 1]
    some = alpha_effect.tick_values(
        np.array([0.0, 0.001, 0.2, 0.21, 0.99, 1.0])
    )  # too near: one of them, or an end
    assert some == [0, 0.2, 1]


def test_a_line_joins_the_two_points_of_a_setting():
    terms = ComparisonSetup(
        search_blocks=(("a > b > c", 0),), final_blocks=(("a > b > c", 1),), held_out=True
    )
    results = replace(small_study(), setup=terms)
    figure, data = stability_plasticity.draw(results)
    places = data[data["setting"] == "d1"][["stability", "plasticity"]].to_numpy()
    (line,) = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert np.column_stack(line.get_data()) == pytest.approx(places)


def test_no_figure_uses_the_global_state_of_pyplot():
    files = sorted(Path(figures.__file__).parent.glob("*.py"))
    assert len(files) > 4
    assert not [file.name for file in files if "matplotlib.pyplot" in file.read_text(encoding="utf-8")]
