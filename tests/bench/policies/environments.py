"""The peers' environments: one each, in the cache folder, built once from pinned versions."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.bench.policies import data

#: What each environment holds; numpy is pinned for all, so that none has a faster one.
NUMPY = "numpy==2.4.6"
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "vowpalwabbit": ("vowpalwabbit==9.11.9", NUMPY),
    "mabwiser": ("mabwiser==2.7.4", NUMPY),
    "contextualbandits": ("contextualbandits==0.3.30", NUMPY),
    "bayesianbandits": ("bayesianbandits==1.5.0", NUMPY),
    "river": ("river==0.26.1", NUMPY),
    "implicit": ("implicit==0.7.3", "scipy==1.17.1", NUMPY),
    # LightFM's own last release does not build on Python 3.11; this is its continuation.
    "lightfm": ("lightfm-next==1.19.0", "scipy==1.17.1", NUMPY),
    # A service around Vowpal Wabbit as `tests.bench.rival` writes it.
    "rival": (
        *("vowpalwabbit==9.11.9", "flask==3.1.3", "granian==2.8.7", "msgspec==0.23.0"),
        *("psycopg[binary,pool]==3.3.9", NUMPY),
    ),
    "scikit-learn": ("scikit-learn==1.9.1", "scipy==1.17.1", NUMPY),
}


class EnvironmentUnavailableError(Exception):
    """A peer's environment could not be built; the message says which, why and what to do."""


def python(library: str) -> Path:
    """The interpreter of a library's environment, which is built when it is not there.

    Raises:
        EnvironmentUnavailableError: the library could not be installed.
    """
    folder = data.cache() / "environments" / library
    interpreter = folder / "bin" / "python"
    stamp, wanted = folder / "installed", "\n".join((sys.version, *REQUIREMENTS[library]))
    if stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    venv.create(folder, clear=True, with_pip=True)
    try:
        _install(interpreter, REQUIREMENTS[library])
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "").strip().splitlines()[-1:] or ["no reason was given"]
        raise EnvironmentUnavailableError(
            f"{library}: {', '.join(REQUIREMENTS[library])} could not be installed: {last[0]}. "
            f"Leave it out with --systems, or see to it that pip can install it."
        ) from error
    stamp.write_text(wanted)
    return interpreter


def _install(interpreter: Path, requirements: tuple[str, ...]) -> None:
    """By uv, which is fast, or by pip where uv finds no index (it does not read pip's settings)."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv:
        command = [uv, "pip", "install", "--no-config", "--system-certs"]
        found = subprocess.run([*command, "--python", str(interpreter), *requirements], **quiet)  # type: ignore[call-overload]
        if found.returncode == 0:
            return
    command = [str(interpreter), "-m", "pip", "install", "--quiet", "--no-input"]
    subprocess.run([*command, *requirements], check=True, **quiet)  # type: ignore[call-overload]
