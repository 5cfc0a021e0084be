"""What a decision costs in time and memory, from 10 to 10,000 arms and 8 to 2,048 features.

``OPENBLAS_NUM_THREADS=1 python -m tests.bench.scaling`` learns from made-up rows, then decides one
row at a time from a belief that is there already (as serving does), and writes ``scaling.json`` and
``scaling.svg`` beside this file. Memory is the belief's and what one decision allocates on top of
it, at its peak. The belief itself is computed once per snapshot; its time is in the JSON.

The slope of a line is the exponent of its growth over its last factor of ten: 1 is linear. In
arms nothing should exceed 1; in features a linear model that knows its uncertainty has a matrix per
arm, so its own order is 2. The machine has a slope of its own, since what is large lies in slower
memory: beside the policies stands a plain product of a vector with as many matrices of the same
size as the linear ones hold, which is what their uncertainty takes at least.

Times are the processor's, of all threads, so that other processes on the machine count little;
more than one thread would count the time that they wait for each other.
"""

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import vl_convert

from bandits import features as quantised
from bandits import policies
from bandits.policies.contextual import leaves
from bandits.types import Batch, Contexts, Policy
from service import charts

HERE = Path(__file__).parent
ARMS = (10, 32, 100, 320, 1000, 3200, 10_000)
FEATURES = (8, 32, 128, 512, 2048)
#: Features where arms grow, and arms where features grow.
FEW_FEATURES, FEW_ARMS = 8, 10
#: What the machine needs for the matrices alone.
YARDSTICK = "matrix-vector products"
#: Rows learnt, and rows of one batch.
ROWS, BATCH = 2000, 50


class Point(NamedTuple):
    """One measurement: milliseconds of a decision and of a belief, and megabytes."""

    policy: str
    axis: str
    size: int
    decision_ms: float
    memory_mb: float
    belief_ms: float


def measured(name: str, *, arms: int, features: int, axis: str) -> Point:
    """The cost of one decision of the policy ``name``."""
    policy = policies.make(name, arms=arms, segments=1, features=features, **options(name, arms))
    state = learnt(policy, arms=arms, features=features)
    begin = time.process_time()
    belief = policy.believe(state)
    believed = time.process_time() - begin
    x = quantised.quantise(np.random.default_rng(1).normal(size=(1, features)))
    contexts, mask = Contexts(np.zeros(1, np.int32), x), np.ones((1, arms), bool)
    held = sum(np.asarray(leaf).nbytes for leaf in leaves(belief))
    took, peak = cost(lambda: policy.probabilities(belief, contexts, mask))
    size = arms if axis == "arms" else features
    return Point(name, axis, size, 1e3 * took, (held + peak) / 1e6, 1e3 * believed)


def options(name: str, arms: int) -> dict[str, Any]:
    """What a policy must be told: the shares, or, as a campaign's offers tell them, the depths."""
    if name == "fixed_split":
        return {"shares": np.ones(arms)}
    if name == "thompson_hierarchical":
        return {"depth": np.linspace(0.0, 0.3, arms)[None].tolist()}
    return {}


def cost(call: Callable[[], object]) -> tuple[float, int]:
    """Median seconds of a call, and the bytes that it allocates at its peak."""
    times: list[float] = []
    while len(times) < 5 or (sum(times) < 1.0 and len(times) < 200):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return float(np.median(times)), peak


def yardstick(*, arms: int, features: int, axis: str) -> Point:
    """The cost of one vector times the matrices of all arms, in plain numpy."""
    width = features + 1
    matrices, x = np.ones((arms, width, width)), np.ones((1, width))
    took, peak = cost(lambda: np.matmul(x, matrices))
    size = arms if axis == "arms" else features
    return Point(YARDSTICK, axis, size, 1e3 * took, (matrices.nbytes + peak) / 1e6, 0.0)


def learnt(policy: Policy, *, arms: int, features: int) -> Any:
    """A state that has learnt from ``ROWS`` rows; fitted to some, where it is fitted."""
    rng, state = np.random.default_rng(0), policy.init()
    for _ in range(ROWS // BATCH):
        state = policy.update(state, rows(rng, BATCH, arms=arms, features=features))
    if policy.retrain is not None:
        state = policy.retrain(state, rows(rng, BATCH, arms=arms, features=features), 0)
    return state


def rows(rng: np.random.Generator, count: int, *, arms: int, features: int) -> Batch:
    """Decisions of a uniform policy; arms earn more or less, and by the first feature."""
    x = rng.normal(size=(count, features))
    arm = rng.integers(0, arms, count).astype(np.int32)
    rate = 0.05 + 0.1 * (arm % 7 == 3) + 0.1 * (x[:, 0] > 0)
    sold = (rng.random(count) < rate).astype(np.int64)
    contexts = Contexts(np.zeros(count, np.int32), quantised.quantise(x))
    simplex, one = np.full((count, arms), 1.0 / arms), np.ones(count, np.int64)
    return Batch(contexts, arm, simplex, sold, sold * rng.integers(200, 900, count), one)


def all_points(names: list[str]) -> list[Point]:
    """Every policy at every size; contextual ones along features as well."""
    points = [yardstick(arms=size, features=FEW_FEATURES, axis="arms") for size in ARMS]
    points += [yardstick(arms=FEW_ARMS, features=size, axis="features") for size in FEATURES]
    for name in names:
        for size in ARMS:
            points.append(measured(name, arms=size, features=FEW_FEATURES, axis="arms"))
            print(points[-1], flush=True)
        for size in FEATURES if policies.describe(name).contextual else ():
            points.append(measured(name, arms=FEW_ARMS, features=size, axis="features"))
            print(points[-1], flush=True)
    return points


def slopes(points: list[Point]) -> dict[str, dict[str, float]]:
    """Exponents of time and memory by "policy, axis", over at most the last factor of ten."""
    found = {}
    for name, axis in dict.fromkeys((point.policy, point.axis) for point in points):
        line = [point for point in points if (point.policy, point.axis) == (name, axis)]
        last = line[-1]
        before = next(point for point in line if point.size * 10 >= last.size)
        steps = np.log(last.size / before.size)
        found[f"{name}, {axis}"] = {
            "time": float(np.log(last.decision_ms / before.decision_ms) / steps),
            "memory": float(np.log(last.memory_mb / before.memory_mb) / steps),
        }
    return found


def drawn(points: list[Point]) -> str:
    """The figure, SVG: time and memory along arms and features, both axes logarithmic."""
    values = [point._asdict() for point in points]
    colour = {"field": "policy", "type": "nominal"}
    plain = {"test": f"datum.policy === '{YARDSTICK}'", "value": [4, 4]}
    dash = {"condition": plain, "value": [1, 0]}

    def panel(axis: str, field: str, title: str) -> dict[str, Any]:
        y = {"field": field, "type": "quantitative", "scale": {"type": "log"}, "title": title}
        x = {"field": "size", "type": "quantitative", "scale": {"type": "log"}, "title": axis}
        return {
            "width": 300,
            "height": charts.HEIGHT,
            "transform": [{"filter": f"datum.axis === '{axis}'"}],
            "mark": {"type": "line", "point": True},
            "encoding": {"x": x, "y": y, "color": colour, "strokeDash": dash},
        }

    kinds = (("decision_ms", "one decision, ms"), ("memory_mb", "memory, MB"))
    grid = [{"hconcat": [panel(axis, *kind) for axis in ("arms", "features")]} for kind in kinds]
    colours = {"range": {"category": {"scheme": "tableau20"}}, "background": "white"}
    spec = {"data": {"values": values}, "vconcat": grid, "config": charts.theme("light") | colours}
    picture: str = vl_convert.vegalite_to_svg(spec)
    return picture


def main() -> None:
    """Measure, write, and print the slopes; policies measured before and not named are kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--policies", nargs="*", default=list(policies.NAMES))
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the two files")
    chosen = parser.parse_args()
    store: Path = chosen.output / "scaling.json"
    old = json.loads(store.read_text("utf-8"))["points"] if store.exists() else []
    kept = [Point(**one) for one in old if one["policy"] not in (*chosen.policies, YARDSTICK)]
    points = kept + all_points(chosen.policies)
    points.sort(key=lambda point: (*policies.NAMES, YARDSTICK).index(point.policy))
    found = slopes(points)
    told = {"points": [point._asdict() for point in points], "slopes": found}
    store.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    (chosen.output / "scaling.svg").write_text(drawn(points) + "\n", "utf-8")
    for line, slope in found.items():
        print(f"{line:35s} time {slope['time']:5.2f}   memory {slope['memory']:5.2f}")


if __name__ == "__main__":
    main()
