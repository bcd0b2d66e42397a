"""Two machine types, and a study of the toy world that runs on them."""

from toy_world import World

from dgg_ray.config.sections import Orders
from dgg_ray.config.study import Study, StudyData
from dgg_ray.core.interfaces import Training
from dgg_ray.core.strategy import Strategy

OLD, NEW = {"device": "old", "torch": "2.5"}, {"device": "new", "torch": "2.5"}


def two_task_study(world: World) -> Study:
    """The order fours > ones with two seeds; at rate 1 one step learns a task: θ = 4."""
    data = {name: world.data(name) for name in world.tasks}
    return Study(
        "toy",
        None,  # pyright: ignore
        dict.fromkeys(data),
        Strategy(),
        training=Training(epochs=1, batch_size=8, learning_rate=1.0),
        orders=Orders("given", given=(("fours", "ones"),)),
        seeds=(0, 1),
        data=StudyData(data, "model"),
    )
