"""A method in a file of one's own, as the documentation has it."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from method_samples import flat

from dgg_ray.core import plugins
from dgg_ray.strategies.ewc import EWC

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.mark.whole
def test_the_ewc_of_the_documentation_is_a_plugin_and_trains_as_the_shipped_one(
    own_world, tmp_path, monkeypatch
):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (text,) = [block for block in blocks if "MyEWC" in block]
    (tmp_path / "my_ewc.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    own = plugins.find("strategies", "my_ewc:MyEWC")(strength=300.0)
    mine, shipped = own_world.train(own), own_world.train(EWC(strength=300.0))
    assert mine[0].key == shipped[0].key  # the first task is trained once for both
    ours, theirs = flat(own_world.files(mine[1]).values()), flat(own_world.files(shipped[1]).values())
    assert torch.allclose(ours, theirs, atol=1e-6)
    plain = flat(own_world.files(mine[0]).values())
    assert not torch.allclose(ours, plain, atol=1e-4)
