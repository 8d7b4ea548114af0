"""Files and folders appear complete or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from semo_sdk.files import replacing, replacing_folder, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    write_text(target, "old")
    with pytest.raises(OSError, match="disk"), replacing(target) as temporary:
        assert temporary.suffix == ".json"  # writers that go by the suffix know what to do
        temporary.write_text("half")
        raise OSError("disk")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert target.read_text() == "old"
    write_text(target, "new")
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    for content in ("old", "new"):
        with replacing_folder(target) as folder:
            (folder / content).write_text(content)
        assert [path.name for path in target.iterdir()] == [content]
    with pytest.raises(OSError, match="disk"), replacing_folder(target) as folder:
        (folder / "half").write_text("half")
        raise OSError("disk")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in target.parent.iterdir()] == ["bundle"]
