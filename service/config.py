"""Settings: everything that Barter takes from its environment, read once and checked.

| variable | meaning | default |
|---|---|---|
| ``BARTER_DATA`` | folder of the spool, the secret key and the embedded PostgreSQL | see below |
| ``DATABASE_URL`` | an ordinary PostgreSQL ≥ 15 to use instead of the embedded one | unset |
| ``BARTER_HOST`` | address to listen on | ``127.0.0.1`` |
| ``BARTER_PORT`` | port to listen on | ``8080`` |
| ``BARTER_WORKERS`` | web processes | ``2`` |
| ``BARTER_ACKNOWLEDGE`` | what an answer means: on ``disk``, or in the ``database`` | ``disk`` |
| ``BARTER_KEEP_DAYS`` | days that the log is kept, at least 31; 0 keeps it for ever | ``0`` |
| ``BARTER_SECRET`` | at least 32 characters, the root of every signing key | ``secret.key`` |

The data folder is ``$XDG_DATA_HOME/barter``, or ``~/.local/share/barter``, open to its owner
only. Root gets ``/var/lib/barter``, as a system service would: PostgreSQL refuses to run as
root, and the account that it is given could not pass through root's home.

Without ``BARTER_SECRET`` a random secret is made once and kept in ``secret.key`` of the data
folder. Pseudonyms, cookies and cursors all hang on it: keep it with the backups.
"""

import hashlib
import hmac
import os
import pwd
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args
from urllib.parse import urlsplit

SYSTEM_DATA = Path("/var/lib/barter")
SECRET_FILE = "secret.key"
SECRET_LENGTH_MIN = 32
Acknowledge = Literal["disk", "database"]
KEEP_DAYS_MIN = 31
"""Decisions that were made elsewhere come in up to 30 days late, and must not be taken for new."""


class ConfigError(ValueError):
    """A setting is wrong: ``{variable}: {problem}``, and what to do about it."""

    def __init__(self, variable: str, problem: str) -> None:
        """Name the ``variable`` and say in ``problem`` what is wrong and what would be right."""
        super().__init__(f"{variable}: {problem}")
        self.variable = variable


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one Barter installation; :meth:`from_env` reads them.

    data: the data folder, which exists. database_url: None means the embedded PostgreSQL.
    port: 1–65535. workers: web processes, ≥ 1. secret: ≥ 32 bytes, never printed.
    acknowledge: what is known of an entry when it is answered (`service.committed`).
    keep_days: how long the log is kept at least, 0 (for ever) or ≥ 31.
    """

    data: Path
    secret: bytes = field(repr=False)
    database_url: str | None = field(default=None, repr=False)
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 2
    acknowledge: Acknowledge = "disk"
    keep_days: int = 0

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Config":
        """Read and check the variables; make the data folder and the secret where missing.

        Raises ConfigError, which names the variable and the remedy.
        """
        env = os.environ if environ is None else environ
        data = prepare_data(_data_folder(env))
        return cls(
            data=data,
            secret=_secret(env, data=data),
            database_url=_database_url(env),
            host=env.get("BARTER_HOST") or "127.0.0.1",
            port=_integer(env, "BARTER_PORT", default=8080, low=1, high=65535),
            workers=_integer(env, "BARTER_WORKERS", default=2, low=1, high=256),
            acknowledge=_acknowledge(env),
            keep_days=_keep_days(env),
        )

    def key(self, label: str) -> bytes:
        """Derive the 32-byte key for one purpose, such as ``"pseudonym"`` or ``"cookie"``.

        HMAC-SHA256 of the label under the secret: one key tells nothing about another.

        >>> config = Config(data=Path("/tmp"), secret=b"x" * 32)
        >>> len(config.key("cookie")), config.key("cookie") == config.key("cursor")
        (32, False)
        """
        return hmac.digest(self.secret, b"barter key: " + label.encode(), hashlib.sha256)

    def environment(self) -> dict[str, str]:
        """Return the variables that give a child process this very configuration."""
        return {
            "BARTER_DATA": str(self.data),
            "BARTER_HOST": self.host,
            "BARTER_PORT": str(self.port),
            "BARTER_WORKERS": str(self.workers),
            "BARTER_ACKNOWLEDGE": self.acknowledge,
            "BARTER_KEEP_DAYS": str(self.keep_days),
            "BARTER_SECRET": self.secret.decode(),
            "DATABASE_URL": self.database_url or "",
        }


def prepare_data(folder: Path) -> Path:
    """Make ``folder`` with mode 0700, or check that an existing one is not open to others.

    A folder that holds something is never re-moded: it may not be ours (``/tmp``, say).
    Raises ConfigError if it is open to others or cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & 0o007 and not any(folder.iterdir()):
            folder.chmod(0o700)
            mode = 0o700
    except OSError as error:
        raise ConfigError(
            "BARTER_DATA",
            f"cannot use the data folder {folder} ({error.strerror}); "
            "name a folder that you may write to",
        ) from error
    if mode & 0o007:
        raise ConfigError(
            "BARTER_DATA",
            f"{folder} is open to other users (mode {mode:04o}); "
            f"name a folder of its own, or run: chmod 700 {folder}",
        )
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError("BARTER_DATA", f"{folder} is not writable; name a folder of your own")
    return folder.resolve()


def _data_folder(env: Mapping[str, str]) -> Path:
    if given := env.get("BARTER_DATA"):
        return Path(given).expanduser().absolute()
    if os.geteuid() == 0:
        return SYSTEM_DATA
    # The XDG specification tells programs to ignore a relative path here.
    if (xdg := env.get("XDG_DATA_HOME", "")).startswith("/"):
        return Path(xdg) / "barter"
    return _home(env) / ".local" / "share" / "barter"


def _home(env: Mapping[str, str]) -> Path:
    if (home := env.get("HOME", "")).startswith("/"):
        return Path(home)
    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        raise ConfigError(
            "BARTER_DATA", "this account has no home folder; name a folder for Barter's data"
        ) from None


def _secret(env: Mapping[str, str], *, data: Path) -> bytes:
    if given := env.get("BARTER_SECRET"):
        secret = given.encode()
        if len(secret) < SECRET_LENGTH_MIN:
            raise ConfigError(
                "BARTER_SECRET",
                f"has {len(secret)} characters and needs at least {SECRET_LENGTH_MIN}; make one "
                "with: python3 -c 'import secrets; print(secrets.token_hex(32))'",
            )
        return secret
    return _secret_file(data / SECRET_FILE)


def _secret_file(path: Path) -> bytes:
    """Read the secret, made on first use; two processes that race end with the same one."""
    if not path.exists():
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            # A link, not a rename: it fails where another process was first.
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError("BARTER_SECRET", f"{path} is open to others; run: chmod 600 {path}")
    secret = path.read_bytes().strip()
    if len(secret) < SECRET_LENGTH_MIN:
        raise ConfigError("BARTER_SECRET", f"{path} is damaged; restore it from a backup")
    return secret


def _database_url(env: Mapping[str, str]) -> str | None:
    url = env.get("DATABASE_URL")
    if not url:
        return None
    # The value may hold a password, so the message does not repeat it.
    if urlsplit(url).scheme not in {"postgres", "postgresql", "postgresql+psycopg"}:
        raise ConfigError(
            "DATABASE_URL",
            "must look like postgresql://user:password@host:5432/database; "
            "leave it unset to use the embedded PostgreSQL",
        )
    return url


def _acknowledge(env: Mapping[str, str]) -> Acknowledge:
    given = env.get("BARTER_ACKNOWLEDGE") or "disk"
    for name in get_args(Acknowledge):
        if given == name:
            return cast(Acknowledge, name)
    raise ConfigError("BARTER_ACKNOWLEDGE", f"is {given!r}; it must be disk or database")


def _keep_days(env: Mapping[str, str]) -> int:
    days = _integer(env, "BARTER_KEEP_DAYS", default=0, low=0, high=36_500)
    if 0 < days < KEEP_DAYS_MIN:
        raise ConfigError(
            "BARTER_KEEP_DAYS",
            f"is {days}; it must be 0, which keeps the log for ever, or at least {KEEP_DAYS_MIN}",
        )
    return days


def _integer(env: Mapping[str, str], variable: str, *, default: int, low: int, high: int) -> int:
    given = env.get(variable)
    if not given:
        return default
    if given.isascii() and given.isdigit() and len(given) < 10 and low <= int(given) <= high:
        return int(given)
    raise ConfigError(variable, f"is {given!r}; it must be a whole number from {low} to {high}")
