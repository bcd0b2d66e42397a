"""How alike tasks are, from their examples alone."""

import numpy as np
import pytest
from PIL import Image

from dgg_ray.config.task_similarity import profile_of, similarity_matrix
from dgg_ray.core.interfaces import Example, Task

BLACK, WHITE = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)


def task(*rows) -> Task:
    examples = [Example(str(i), question, answer, image) for i, (question, answer, image) in enumerate(rows)]
    return Task("t", {"train": examples, "validation": examples, "test": examples}, {})


def test_the_similarity_is_the_mean_coefficient_of_words_and_pictures():
    a = task(("how many red", "two", BLACK), ("how many red", "two", WHITE))
    b = task(("how many blue", "three", BLACK))
    # questions: two of three words in common, √(1/3 · 1/3) each; answers: none; pictures: √(1/2 · 1)
    assert similarity_matrix([profile_of(a), profile_of(b)])[0][1] == pytest.approx(
        (2 / 3 + 0 + 0.5**0.5) / 3
    )


def test_a_task_is_similar_to_itself_and_similarity_is_mutual():
    tasks = [task(("what is it", "cat", BLACK)), task(("what", "dog", None)), task(("say it", "cat", WHITE))]
    alike = np.array(similarity_matrix([profile_of(t) for t in tasks]))
    assert np.diag(alike) == pytest.approx(1)
    assert (alike == alike.T).all()
    assert ((alike >= 0) & (alike <= 1)).all()
    assert alike[0, 1] < alike[0, 2]


def test_a_picture_in_a_file_counts_as_its_pixels(tmp_path):
    Image.fromarray(WHITE).save(tmp_path / "white.png")
    assert profile_of(task(("q", "a", tmp_path / "white.png"))) == profile_of(task(("q", "a", WHITE)))


def test_capitals_and_the_number_of_examples_do_not_count():
    assert profile_of(task(("What?", "Yes", None))) == profile_of(task(*[("what", "yes", None)] * 500))
