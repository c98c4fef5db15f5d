from __future__ import annotations

import asyncio
import io
import json
import zipfile
from pathlib import Path

import pytest

from gateway.settings import GatewaySettings
from gateway.studio import Studio, acting_as
from gateway.values import ProjectState
from services.common.dataset import Origin
from services.common.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from tests.unit.studio.wafer_makers import grid, wafers, zipped


async def test_a_new_project_has_the_none_class_first_and_says_what_it_needs(studio: Studio) -> None:
    project = await studio.projects.create("Probe test", classes=["Scratch", "정상", "Shot grid"])
    board = await studio.projects.board(project.project_id)
    classes = [card.wafer_class for card in board.cards]
    assert [(each.name, each.pattern) for each in classes] == [
        ("정상", "none"),
        ("Scratch", "Scratch"),
        ("Shot grid", ""),
    ]
    assert len({each.colour for each in classes}) == 3
    assert board.state is ProjectState.EMPTY
    assert (board.training.open, board.training.reason) == (False, "few_classes")
    assert [note.key for note in board.cards[0].health] == ["no_wafers"]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "한국어 이름", "wafer 🎉 👩‍🔬", "a" * 256, "<script>", "CON", "'; --"]
)
async def test_any_readable_name_is_kept_as_it_is_and_gives_a_safe_file_name(studio: Studio, name: str) -> None:
    project = await studio.projects.create(name)
    assert (await studio.projects.get(project.project_id)).name == name
    file_name = await studio.projects.export_name(project.project_id)
    assert file_name.endswith(".zip")
    assert not set(file_name) & set("/\\:*?\"<>|\n'")
    assert not file_name.startswith(".")
    assert len(file_name.encode()) <= 130


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "NAME_EMPTY"),
        ("   ", "NAME_EMPTY"),
        ("\u200b", "NAME_EMPTY"),
        ("a" * 10_000, "NAME_TOO_LONG"),
        ("a\x00b", "NAME_UNREADABLE"),
        ("evil\u202egpj", "NAME_UNREADABLE"),
        ("\ud800", "NAME_UNREADABLE"),
    ],
)
async def test_a_name_that_is_none_is_refused_with_a_reason(studio: Studio, name: str, reason: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await studio.projects.create(name)
    assert caught.value.reason == reason
    assert await studio.projects.list() == ()


async def test_of_two_people_who_rename_at_once_one_is_told(studio: Studio) -> None:
    project = await studio.projects.create("Before")
    attempts = [
        studio.projects.rename(project.project_id, f"Name {who}", expected_version=project.version) for who in range(4)
    ]
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    refused = [each for each in outcomes if isinstance(each, AbortedError)]
    assert len(refused) == 3
    assert {each.reason for each in refused} == {"CHANGED_BY_OTHERS"}
    assert (await studio.projects.get(project.project_id)).version == project.version + 1


async def test_class_names_are_unique_whatever_their_capitals(studio: Studio) -> None:
    project = await studio.projects.create("P", classes=["Scratch"])
    for name in ("scratch", "SCRATCH", " Scratch  ", "Ｓcratch"):
        with pytest.raises(AlreadyExistsError) as caught:
            await studio.classes.add(project.project_id, name)
        assert caught.value.reason == "CLASS_NAME_TAKEN"
    with pytest.raises(AlreadyExistsError):
        await studio.projects.create("Q", classes=["A", "a"])


async def test_of_many_who_add_the_same_class_at_once_one_wins(studio: Studio) -> None:
    project = await studio.projects.create("P")
    outcomes = await asyncio.gather(
        *(studio.classes.add(project.project_id, "Donut") for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(each, AlreadyExistsError) for each in outcomes) == 4
    assert [each.name for each in await studio.classes.list(project.project_id)] == ["none", "Donut"]


async def test_everything_that_was_done_to_classes_can_be_taken_back(studio: Studio) -> None:
    project = await studio.projects.create("P", classes=["Center", "Donut"])
    _, center, donut = await studio.classes.list(project.project_id)
    await studio.wafers.add(center.class_id, wafers(6))
    await studio.wafers.add(donut.class_id, wafers(4, first=100))
    before = await _picture(studio, project.project_id)

    steps = [
        await studio.classes.rename(center.class_id, "Middle"),
        await studio.classes.recolour(center.class_id, "#ABCDEF"),
        await studio.classes.enable(donut.class_id, False),
        await studio.classes.clear(donut.class_id),
        await studio.classes.merge(donut.class_id, center.class_id),
        await studio.classes.delete(center.class_id),
        (await studio.classes.add(project.project_id))[1],
    ]
    assert [each.name for each in await studio.classes.list(project.project_id)] == ["none", "Class 1"]
    for change in reversed(steps):
        assert (await studio.history.undo(change.change_id)).undone
    assert await _picture(studio, project.project_id) == before
    assert all(each.undone for each in (await studio.history.list(project.project_id))[:7])


async def test_undo_twice_changes_nothing_more(studio: Studio) -> None:
    project = await studio.projects.create("P", classes=["Center"])
    center = (await studio.classes.list(project.project_id))[1]
    change = await studio.classes.rename(center.class_id, "Middle")
    await studio.history.undo(change.change_id)
    await studio.classes.rename(center.class_id, "Core")
    await studio.history.undo(change.change_id)
    assert (await studio.classes.list(project.project_id))[1].name == "Core"


async def test_undo_of_what_was_changed_since_says_so_and_changes_nothing(studio: Studio) -> None:
    project = await studio.projects.create("P", classes=["Center", "Donut"])
    _, center, donut = await studio.classes.list(project.project_id)
    renamed = await studio.classes.rename(center.class_id, "Middle")
    await studio.classes.rename(center.class_id, "Core")
    added = await studio.wafers.add(donut.class_id, wafers(3))
    moved = await studio.wafers.move(added.wafer_ids, center.class_id)
    await studio.classes.delete(donut.class_id)
    before = await _picture(studio, project.project_id)
    for change in (renamed, moved):
        with pytest.raises(AbortedError) as caught:
            await studio.history.undo(change.change_id)
        assert caught.value.reason == "CHANGED_SINCE"
    assert await _picture(studio, project.project_id) == before


async def test_wafers_whose_addition_was_taken_back_do_not_return_with_their_deletion(studio: Studio) -> None:
    project = await studio.projects.create("P", classes=["Center"])
    center = (await studio.classes.list(project.project_id))[1]
    added = await studio.wafers.add(center.class_id, wafers(3))
    deleted = await studio.wafers.delete(added.wafer_ids[:2])
    assert added.change is not None
    await studio.history.undo(added.change.change_id)
    await studio.history.undo(deleted.change_id)
    assert (await studio.projects.board(project.project_id)).counts.wafers == 0


async def test_the_none_class_stays(studio: Studio) -> None:
    project = await studio.projects.create("P", classes=["Center"])
    none, center = await studio.classes.list(project.project_id)
    with pytest.raises(FailedPreconditionError) as caught:
        await studio.classes.delete(none.class_id)
    assert caught.value.reason == "NONE_CLASS_PINNED"
    with pytest.raises(FailedPreconditionError):
        await studio.classes.merge(none.class_id, center.class_id)
    await studio.classes.reorder(project.project_id, [center.class_id, none.class_id])
    assert (await studio.classes.list(project.project_id))[0].none


async def test_health_names_what_is_missing(studio: Studio) -> None:
    project = await studio.projects.create("P", classes=["Center", "Donut", "Scratch"])
    none, center, donut, scratch = await studio.classes.list(project.project_id)
    await studio.wafers.add(none.class_id, wafers(120, lots=10))
    await studio.wafers.add(center.class_id, wafers(3, first=1000, lots=1))
    await studio.wafers.draw(donut.class_id, grid(2000))
    await studio.wafers.add(scratch.class_id, wafers(5, first=3000))
    board = await studio.projects.board(project.project_id)
    keys = {card.wafer_class.name: [note.key for note in card.health] for card in board.cards}
    assert keys["none"] == ["good"]
    assert keys["Center"] == ["few_wafers", "one_lot"]
    assert keys["Donut"] == ["few_wafers", "no_lots"]
    assert keys["Scratch"] == ["imbalance", "below_advised"]
    assert dict(board.cards[1].health[0].params) == {"wafers": 3, "lots": 1, "needed": 5}
    assert (board.training.reason, board.training.params["name"]) == ("few_wafers", "Center")
    assert board.state is ProjectState.TEACHING
    await studio.classes.enable(center.class_id, False)
    await studio.classes.enable(donut.class_id, False)
    board = await studio.projects.board(project.project_id)
    assert board.training.open
    assert board.state is ProjectState.READY


async def test_the_trash_keeps_a_project_until_it_is_restored_or_purged(studio: Studio) -> None:
    project = await studio.projects.create("P", classes=["Center"])
    center = (await studio.classes.list(project.project_id))[1]
    await studio.wafers.add(center.class_id, wafers(3))
    trashed = await studio.projects.trash(project.project_id)
    assert (trashed.wafers, (trashed.purge_at - trashed.deleted_at).days) == (3, 30)
    assert await studio.projects.list() == ()
    for refused in (
        studio.projects.get(project.project_id),
        studio.classes.rename(center.class_id, "X"),
        studio.wafers.add(center.class_id, wafers(1)),
        studio.projects.trash(project.project_id),
    ):
        with pytest.raises(NotFoundError):
            await refused
    await studio.projects.restore(project.project_id)
    assert (await studio.projects.board(project.project_id)).counts.wafers == 3
    with pytest.raises(NotFoundError):
        await studio.projects.purge(project.project_id)
    await studio.projects.trash(project.project_id)
    await studio.projects.purge(project.project_id)
    assert await studio.projects.trashed() == ()
    assert (await studio.server.storage()).wafers == 0


async def test_a_project_file_gives_the_same_project_elsewhere(studio: Studio, tmp_path: Path) -> None:
    project = await studio.projects.create("레이어 ../1", product="N7", classes=["Center", "Shot grid"])
    _, center, shots = await studio.classes.list(project.project_id)
    await studio.wafers.add(center.class_id, wafers(6), source_name="lot.csv")
    await studio.wafers.draw(shots.class_id, grid(77), lot="Z")
    await studio.classes.enable(shots.class_id, False)
    file = await studio.projects.export_file(project.project_id, tmp_path / "p.zip")
    elsewhere = GatewaySettings(home=tmp_path / "other")
    async with await Studio.open(elsewhere, background=False) as other:
        opened = await other.projects.open_file(file)
        assert (opened.name, opened.product) == ("레이어 ../1", "N7")
        again = await other.projects.open_file(file, name="Second")
        assert again.project_id != opened.project_id
        classes = await other.classes.list(opened.project_id)
        assert [(each.name, each.pattern, each.enabled) for each in classes] == [
            ("none", "none", True),
            ("Center", "Center", True),
            ("Shot grid", "", False),
        ]
        page = await other.wafers.page(opened.project_id, classes[2].class_id)
        detail = await other.wafers.get(page.wafers[0].wafer_id)
        assert (detail.map.dies == grid(77)).all()
        assert (detail.info.lot, detail.info.origin) == ("Z", Origin.DRAWN)
        assert (await other.projects.board(opened.project_id)).counts.lots == 4


async def test_a_duplicate_has_its_own_wafers(studio: Studio) -> None:
    project = await studio.projects.create("P", classes=["Center"])
    center = (await studio.classes.list(project.project_id))[1]
    added = await studio.wafers.add(center.class_id, wafers(5))
    copied = await studio.projects.duplicate(project.project_id, "Copy")
    await studio.wafers.delete(added.wafer_ids)
    board = await studio.projects.board(copied.project_id)
    assert board.counts.wafers == 5
    assert [card.wafer_class.name for card in board.cards] == ["none", "Center"]


@pytest.mark.parametrize("damage", ["text", "empty", "other_zip", "bomb", "manifest", "hash", "class", "newer", "cut"])
async def test_a_project_file_that_is_none_is_refused_and_nothing_is_kept(
    studio: Studio, tmp_path: Path, damage: str
) -> None:
    project = await studio.projects.create("P", classes=["Center"])
    center = (await studio.classes.list(project.project_id))[1]
    await studio.wafers.add(center.class_id, wafers(3))
    file = await studio.projects.export_file(project.project_id, tmp_path / "p.zip")
    file.write_bytes(_damaged(file.read_bytes(), damage))
    with pytest.raises(InvalidArgumentError) as caught:
        await studio.projects.open_file(file)
    assert caught.value.reason in {
        "NOT_A_PROJECT_FILE",
        "PROJECT_FILE_DAMAGED",
        "PROJECT_FILE_NEWER",
        "PROJECT_FILE_TOO_LARGE",
    }
    assert len(await studio.projects.list()) == 1


async def test_what_is_done_is_written_into_the_audit_log_under_a_name(studio: Studio) -> None:
    with acting_as("kim"):
        project = await studio.projects.create("P")
        change = await studio.projects.rename(project.project_id, "Q")
    assert change.person == "kim"
    entries = await studio.people.audit(subject=f"projects/{project.project_id}")
    assert [(each.person, each.action) for each in entries] == [("kim", "project.create")]


async def test_preferences_and_feedback_are_kept(studio: Studio) -> None:
    assert await studio.people.preference("kim", "language", "en") == "en"
    await studio.people.set_preference("kim", "language", "ko")
    await studio.people.set_preference("kim", "language", "en")
    await studio.people.set_preference("kim", "language", "ko")
    assert await studio.people.preference("kim", "language", "en") == "ko"
    await studio.people.send_feedback("좋아요\n\x00second line", page="home")
    (message,) = await studio.people.feedback()
    assert (message.text, message.page) == ("좋아요\nsecond line", "home")
    with pytest.raises(InvalidArgumentError):
        await studio.people.send_feedback("  ")


async def _picture(studio: Studio, project_id: str) -> list[tuple[object, ...]]:
    """What a person sees of the classes."""
    board = await studio.projects.board(project_id)
    return [
        (card.wafer_class.name, card.wafer_class.colour, card.wafer_class.enabled, card.counts) for card in board.cards
    ]


def _damaged(content: bytes, damage: str) -> bytes:
    if damage in ("text", "empty", "cut"):
        return {"text": b"hello", "empty": b"", "cut": content[: len(content) // 2]}[damage]
    if damage == "other_zip":
        return zipped({"a.txt": b"a"})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(entries["project.json"])
    if damage == "bomb":
        entries["project.json"] = b" " * (9 << 20)
        return zipped(entries)
    if damage == "hash":
        entries["wafers.parquet"] = entries["wafers.parquet"][:-1] + b"x"
    if damage == "class":
        manifest["classes"] = manifest["classes"][:1]
    if damage == "newer":
        manifest["format_version"] = 99
    if damage == "manifest":
        del manifest["files"]
    entries["project.json"] = json.dumps(manifest).encode()
    return zipped(entries)
