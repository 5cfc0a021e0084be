"""What is compiled must lower for a GPU that is not here."""

from typing import Any

import jax
import numpy as np
import pytest

from bandits.recommender import als_explicit, als_implicit, blocks


def _shaped(*shape: int, kind: Any = np.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, kind)  # type: ignore[no-untyped-call]


BLOCK = blocks.Block(
    _shaped(8, kind=np.int32), _shaped(8, 16, kind=np.int32), _shaped(8, 16), _shaped(8)
)
COMPILED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "explicit": (
        als_explicit._solve,
        (_shaped(8, 5), _shaped(8, 16, 5), BLOCK, _shaped(kind=np.int32)),
    ),
    "implicit": (
        als_implicit._solve,
        (_shaped(8, 4), _shaped(8, 16, 4), BLOCK, _shaped(4, 4), _shaped()),
    ),
    "gram": (als_implicit._gram, (_shaped(9, 4),)),
    "put": (blocks._put, (_shaped(9, 4), BLOCK.row, _shaped(8, 4))),
    "taken": (blocks._taken, (_shaped(9, 4), BLOCK.index)),
}


@pytest.mark.parametrize("name", COMPILED)
def test_everything_compiled_lowers_for_cuda(name: str) -> None:
    function, arguments = COMPILED[name]
    assert function.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
