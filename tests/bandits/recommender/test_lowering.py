"""What is compiled must lower for a GPU that is not here."""

from typing import Any

import jax
import numpy as np
import pytest

from bandits.recommender import als_explicit, als_implicit, blocks, bpr, nmf, two_tower


def _shaped(*shape: int, kind: Any = np.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, kind)  # type: ignore[no-untyped-call]


BLOCK = blocks.Block(
    _shaped(8, kind=np.int32), _shaped(8, 16, kind=np.int32), _shaped(8, 16), _shaped(8)
)
TABLES = bpr.Tables(_shaped(7, 5), _shaped(9, 5), _shaped(7), _shaped(9))
HISTORY = bpr.History(
    _shaped(30, kind=np.int32), _shaped(30, kind=np.int32), _shaped(8, kind=np.int32)
)
KNOWN = two_tower.Known(HISTORY.start, HISTORY.item, _shaped(7, 2), _shaped(9, 3), _shaped(9))
TOWERS = {
    name: jax.eval_shape(
        two_tower.Tower(rows, 4).init, jax.random.key(0), _shaped(1, kind=np.int32), features
    )
    for name, rows, features in (("user", 7, _shaped(1, 2)), ("item", 9, _shaped(1, 3)))
} | {"bias": _shaped(9)}
KEY = jax.random.key(0)
COMPILED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "explicit": (
        als_explicit._solve,
        (_shaped(8, 5), _shaped(8, 16, 5), BLOCK, _shaped(kind=np.int32)),
    ),
    "implicit": (
        als_implicit._solve,
        (_shaped(8, 4), _shaped(8, 16, 4), BLOCK, _shaped(4, 4), _shaped()),
    ),
    "nmf": (nmf._solve, (_shaped(8, 4), _shaped(8, 16, 4), BLOCK, _shaped(4, 4))),
    "nmf gram": (nmf._gram, (_shaped(9, 4),)),
    "bpr": (
        bpr._epoch,
        (TABLES, HISTORY, KEY, _shaped(kind=np.int32), _shaped(), _shaped()),
    ),
    "gram": (als_implicit._gram, (_shaped(9, 4),)),
    "put": (blocks._put, (_shaped(9, 4), BLOCK.row, _shaped(8, 4))),
    "taken": (blocks._taken, (_shaped(9, 4), BLOCK.index)),
}


@pytest.mark.parametrize("candidates", [9, 4])
def test_towers_lower_for_cuda(candidates: int) -> None:
    traced = two_tower._fit.trace(
        TOWERS, KNOWN, KEY, _shaped(kind=np.int32), _shaped(), _shaped(),
        factors=4, candidates=candidates,
    )  # fmt: skip
    assert traced.lower(lowering_platforms=("cuda",)).as_text()
    ready = two_tower._vectors.trace(TOWERS, KNOWN, factors=4)
    assert ready.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("name", COMPILED)
def test_everything_compiled_lowers_for_cuda(name: str) -> None:
    function, arguments = COMPILED[name]
    assert function.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
