"""Files written beside their names and then renamed, so that no name ever holds half a file; texts of bounded size.

Used by genotypes, latency tables and whatever `pipeline` writes; it stands in the folder that all of them may import.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MAX_TEXT_BYTES = 10_000_000
_PARTIAL = re.compile(r"\..+\.(\d{1,7})\.nas-partial(\.[^.]*)?")  # names that `written_beside` writes under, by process


@contextmanager
def written_beside(path: Path | str) -> Iterator[Path]:
    """Yield a path beside `path` to write to; the block's end renames it to `path`, an error removes it.

    Raises:
        OSError: the disk is full or the folder cannot be written; the message names `path`.
    """
    path = Path(path)
    beside = path.with_name(f".{path.stem}.{os.getpid()}.nas-partial{path.suffix}")
    with naming_file(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)  # it would take the space that may be missing
            raise


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Let an error of the block name the file that was to be written, and what comes next.

    Raises:
        OSError: as the block's.
    """
    try:
        yield
    except OSError as error:
        advice = "mend that and the same command goes on"
        if not error.errno:
            raise OSError(f"{error}; {advice}: {path}") from error
        # Not the error's own text: pyarrow's is another.
        raise OSError(error.errno, f"{os.strerror(error.errno)}; {advice}", str(path)) from error


def write_atomically(path: Path | str, content: str | bytes) -> None:
    """Write text or bytes so that `path` never holds half of it."""
    with written_beside(path) as beside:
        beside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def read_text(path: Path) -> str:
    """Read a text that may come from anybody.

    Raises:
        ValueError: it has more than 10 MB, far above any of ours, or is not UTF-8.
    """
    if path.stat().st_size > _MAX_TEXT_BYTES:
        raise ValueError(f"it is larger than {_MAX_TEXT_BYTES} bytes")
    return path.read_text(encoding="utf-8")


def remove_partial_files(folder: Path) -> None:
    """Remove what processes that are gone left half written in `folder` and below."""
    for path in partial_files(folder):
        with suppress(OSError):  # of another user, or another command tidies too
            path.unlink()


def partial_files(folder: Path) -> list[Path]:
    """Return what is half written in `folder` and below by processes that are gone."""
    return [path for path in folder.rglob(".*.nas-partial*") if _is_left(path)]


def _is_left(path: Path) -> bool:
    match = _PARTIAL.fullmatch(path.name)
    return match is not None and path.is_file() and not is_alive(int(match[1]))


def is_alive(pid: int) -> bool:
    """Tell whether this machine has a process of that id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
