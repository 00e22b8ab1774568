"""Which images show the same scene: named by a set with a slash, as `scene/image`."""

from collections.abc import Iterable


def scenes_of(names: Iterable[str]) -> list[str]:
    """Return the scene of every image: its name up to the last slash, or the whole name where there is none."""
    return [name.rpartition("/")[0] or name for name in names]
