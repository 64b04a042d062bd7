"""`BRONZE_HOME`: which folder is ours to remove."""

from __future__ import annotations

from pathlib import Path

from bronze_assets.errors import SettingsError

_MARKER = ".bronze-home"
_MARKER_TEXT = "Made by bronze_assets; `make clean` removes this folder.\n"
# All that a home holds. A folder with anything else in it is not ours to remove, nor is one without the marker.
_PARTS = frozenset(
    {
        _MARKER,
        "lake",
        "landing",
        "archive",
        "copy",
        "cold",
        "drill",
        "staging",
        "keys",
        "postgres",
        "dagster",
        "jars",
        "java",
        "spark",
        "engine",
        "bench",
        "revealed",
        "reports",
        "ui.json",
        "alerts.log",
        "alerts.log.1",
    }
)


def mark(home: Path) -> None:
    """Make the home, and mark it as ours if nothing else lies in it.

    Raises:
        SettingsError: the folder cannot be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not strangers(home):
            (home / _MARKER).write_text(_MARKER_TEXT, encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"BRONZE_HOME={home} cannot be written ({error.strerror}).", "name a folder that can be."
        ) from None


def is_ours(home: Path) -> bool:
    """Whether a demo or a load made this folder, and nobody has put anything else into it."""
    return (home / _MARKER).is_file() and not strangers(home)


def strangers(home: Path) -> list[str]:
    """Names of what lies in the home and was not made by a demo or a load."""
    return sorted(path.name for path in home.iterdir() if path.name not in _PARTS)
