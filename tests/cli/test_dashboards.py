"""``backfill dashboards export``: the files, as a user gets them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.telemetry import boards

Cli = Callable[..., Any]


def there(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected() -> dict[str, bytes]:
    return {str(path): content for path, content in boards.files().items()}


def test_everything_is_written_and_listed(backfill: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    done = backfill("dashboards", "export", str(folder))
    assert done.code == 0
    assert there(folder) == expected()
    assert done.out.splitlines() == [str(folder / name) for name in expected()]
    assert f"{len(expected())} files written" in done.err


def test_a_second_export_changes_nothing(backfill: Cli, tmp_path: Path) -> None:
    backfill("dashboards", "export", str(tmp_path))
    again = backfill("dashboards", "export", str(tmp_path), "--json")
    assert again.code == 0
    assert again.json == {"folder": str(tmp_path), "written": [], "unchanged": [*expected()]}


def test_somebody_elses_file_stays_and_nothing_is_written_beside_it(backfill: Cli, tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    refused = backfill("dashboards", "export", str(tmp_path))
    assert refused.code == 2
    assert "compose.yaml" in refused.err
    assert "--force" in refused.err
    assert there(tmp_path) == {"compose.yaml": b"services: {}\n"}


def test_force_overwrites_what_is_different_and_leaves_other_files(backfill: Cli, tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    (tmp_path / "mine.json").write_text("{}")
    forced = backfill("dashboards", "export", str(tmp_path), "--force", "--json")
    assert forced.code == 0
    assert set(forced.json["written"]) == set(expected())
    assert there(tmp_path) == expected() | {"mine.json": b"{}"}


def test_a_file_in_the_folders_place_is_refused(backfill: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = backfill("dashboards", "export", str(tmp_path / "file"))
    assert refused.code == 2


def test_a_file_where_a_folder_must_be_is_no_crash(backfill: Cli, tmp_path: Path) -> None:
    (tmp_path / "dashboards").touch()
    refused = backfill("dashboards", "export", str(tmp_path))
    assert refused.code == 2
    assert "cannot write" in refused.err


def test_an_installation_without_the_files_says_so(
    backfill: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boards, "PACKED", tmp_path / "packed")
    monkeypatch.setattr(boards, "CHECKOUT", tmp_path / "checkout")
    refused = backfill("dashboards", "export", str(tmp_path / "out"))
    assert refused.code == 2
    assert "not part of this installation" in refused.err


def test_a_wheels_files_come_before_a_checkouts(backfill: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "packed"
    (packed / "dashboards").mkdir(parents=True)
    (packed / "dashboards" / "one.json").write_text("{}")
    monkeypatch.setattr(boards, "PACKED", packed)
    done = backfill("dashboards", "export", str(tmp_path / "out"))
    assert done.code == 0
    assert there(tmp_path / "out") == {"dashboards/one.json": b"{}"}
