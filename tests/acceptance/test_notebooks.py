"""Every notebook runs from top to bottom, and is committed as somebody would want to read it.

They are run on a small problem here (BARTER_NOTEBOOK_STEPS); the committed outputs are of a full
run, so that is checked for what a reader sees: pictures, no errors, nothing about a machine.
"""

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PICTURE = "image/svg+xml"
LARGEST_BYTES = 400_000
MACHINE = re.compile(r"/(home|root|work|tmp|Users|usr|var)/|site-packages|[A-Z]:\\\\")
#: What the code cells of a notebook may import: the library, and what its reader surely has.
IMPORTED = re.compile(r"^\s*(?:from|import)\s+(\w+)", re.MULTILINE)
#: ``service`` for the panel of the demo, which is read and never stored.
ALLOWED = {"IPython", "bandits", "numpy", "os", "re", "service", "typing", "vl_convert"}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in code(notebook) for output in cell.outputs]


def pictures(notebook: Any) -> list[str]:
    return [
        output.data[PICTURE] for output in outputs(notebook) if PICTURE in output.get("data", {})
    ]


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


@pytest.mark.slow
@each_notebook
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    committed, notebook = read(path), read(path)
    for cell in code(notebook):
        cell.outputs = []
    NotebookClient(
        notebook,
        timeout=60,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute(env=os.environ | {"BARTER_NOTEBOOK_STEPS": "4"})
    # A warning would be an output more.
    assert [output.output_type for output in outputs(notebook)] == [
        output.output_type for output in outputs(committed)
    ]
    assert len(pictures(notebook)) == len(pictures(committed))
    assert all(picture.startswith("<svg") for picture in pictures(notebook))


@each_notebook
def test_it_is_fit_to_read(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < LARGEST_BYTES
    assert not MACHINE.search(text)
    assert notebook.metadata.kernelspec.name == "python3"
    ran = [cell.execution_count for cell in code(notebook)]
    assert ran == list(range(1, len(ran) + 1))
    assert {output.output_type for output in outputs(notebook)} <= {"execute_result"}
    captions = re.findall(
        r"^\*\*Picture (\d+): ", "\n".join(c.source for c in notebook.cells), re.M
    )
    assert captions == [str(n + 1) for n in range(len(pictures(notebook)))] != []


@each_notebook
def test_it_uses_the_library_alone(path: Path) -> None:
    sources = "\n".join(cell.source for cell in code(read(path)))
    assert set(IMPORTED.findall(sources)) <= ALLOWED
