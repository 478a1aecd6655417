"""What a wheel has besides the package: configs, models and bridges, in `share/lw_jax` of the
environment (`lw_jax/utils/shipped.py`). All else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup

HOME = Path(__file__).parent


def shipped() -> list[tuple[str, list[str]]]:
    """Folders below `share/lw_jax`, and the files that go there."""
    folders: dict[str, list[str]] = {}
    for part in ("configs", "zoo"):
        for file in sorted((HOME / part).rglob("*")):
            if file.is_file():
                place = file.parent.relative_to(HOME).as_posix()
                folders.setdefault(f"share/lw_jax/{place}", []).append(
                    file.relative_to(HOME).as_posix()
                )
    return list(folders.items())


if __name__ == "__main__":
    setup(data_files=shipped())
