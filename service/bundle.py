"""The browser's chart library, taken out of vl-convert: built once, kept, served under a hash.

Vega-Embed must be called with ``ast: true``, ``defaultStyle: false`` and
``tooltip: {disableDefaultStyle: true}``: then it needs neither ``eval`` nor inline styles, and
runs under ``script-src 'self'``.
"""

import fcntl
import gzip
import hashlib
import importlib.metadata
import os
import secrets
import subprocess
import sys
from pathlib import Path

# The page needs Vega-Embed only; the rest stays out of the global scope.
SNIPPET = "window.vegaEmbed = vegaEmbed;"


def name() -> str:
    """Return the file name of the bundle: the same for the same library and snippet."""
    version = importlib.metadata.version("vl-convert-python")
    return f"vega-{hashlib.sha256(f'{version} {SNIPPET}'.encode()).hexdigest()[:16]}.js"


def path(folder: Path) -> Path:
    """Return the gzipped bundle in a cache folder, built first if missing (about four seconds)."""
    built = folder / f"{name()}.gz"
    if not built.exists():
        prepare(folder).wait()
    return built


def prepare(folder: Path) -> "subprocess.Popen[bytes]":
    """Begin to build the bundle, in a process of its own: the engine it starts is large."""
    return subprocess.Popen([sys.executable, "-m", __name__, str(folder)])


def build(folder: Path) -> None:
    """Build the bundle if it is missing; of several processes one does, and the others wait."""
    built = folder / f"{name()}.gz"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            _write(built)


def _write(target: Path) -> None:
    import vl_convert

    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    draft.write_bytes(gzip.compress(vl_convert.javascript_bundle(SNIPPET).encode(), mtime=0))
    os.replace(draft, target)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
