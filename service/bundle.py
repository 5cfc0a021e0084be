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
from pathlib import Path

# The page needs Vega-Embed only; the rest stays out of the global scope.
SNIPPET = "window.vegaEmbed = vegaEmbed;"


def name() -> str:
    """Return the file name of the bundle: the same for the same library and snippet."""
    version = importlib.metadata.version("vl-convert-python")
    return f"vega-{hashlib.sha256(f'{version} {SNIPPET}'.encode()).hexdigest()[:16]}.js"


def path(folder: Path) -> Path:
    """Return the gzipped bundle in a cache folder, built first if missing (about four seconds).

    Processes that come at the same time wait for the one that builds.
    """
    built = folder / f"{name()}.gz"
    if built.exists():
        return built
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            _build(built)
    return built


def _build(target: Path) -> None:
    # Importing vl-convert starts a JavaScript engine: only the one process that builds pays.
    import vl_convert

    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    draft.write_bytes(gzip.compress(vl_convert.javascript_bundle(SNIPPET).encode(), mtime=0))
    os.replace(draft, target)
