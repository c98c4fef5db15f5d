from __future__ import annotations

import asyncio
import errno
import io
from pathlib import Path

import pytest
from PIL import Image

from gateway.catalogue import people
from gateway.settings import GatewaySettings
from gateway.studio import Studio
from gateway.values import Assignment, UploadFile
from services.common.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError, TeachwaferError
from tests.unit.studio.wafer_makers import die_list, grid, wafers, zipped


@pytest.fixture
async def project_id(studio: Studio) -> str:
    return (await studio.projects.create("P", classes=["Center", "Donut"])).project_id


def _files(*seeds: int, name: str = "lot.csv") -> list[UploadFile]:
    return [UploadFile(name, die_list([grid(seed) for seed in seeds]))]


async def test_nothing_is_stored_before_the_commit(studio: Studio, project_id: str, settings: GatewaySettings) -> None:
    preview = await studio.uploads.stage(project_id, _files(1, 2, 3))
    assert (preview.read, preview.new, preview.lot_missing) == (3, 3, 0)
    assert len(preview.examples) == 3
    assert (await studio.projects.board(project_id)).counts.wafers == 0
    assert not list((settings.home / "store").rglob("originals"))
    done = await studio.uploads.commit(preview.import_id, class_id=(await _class(studio, project_id, "Center")))
    assert done.count == 3
    assert len([file for file in (settings.home / "store" / "originals").rglob("*") if file.is_file()]) == 1
    assert not list((settings.home / "imports").iterdir())


async def test_labels_of_folders_find_their_classes_and_make_new_ones(studio: Studio, project_id: str) -> None:
    archive = zipped(
        {
            "set/CENTER/a.csv": die_list([grid(1), grid(2)], "L1"),
            "set/도넛/b.csv": die_list([grid(3)], "L2"),
            "set/Shot grid/c.csv": die_list([grid(4)], "L2"),
        }
    )
    preview = await studio.uploads.stage(project_id, [UploadFile("set.zip", archive)])
    groups = {group.label: (group.class_name, bool(group.class_id), group.count) for group in preview.labels}
    assert groups == {"CENTER": ("Center", True, 2), "도넛": ("Donut", True, 1), "Shot grid": ("Shot grid", False, 1)}
    done = await studio.uploads.commit(preview.import_id)
    assert len(done.new_classes) == 1
    board = await studio.projects.board(project_id)
    assert {card.wafer_class.name: card.counts.wafers for card in board.cards} == {
        "none": 0,
        "Center": 2,
        "Donut": 1,
        "Shot grid": 1,
    }
    assert done.change is not None
    await studio.history.undo(done.change.change_id)
    board = await studio.projects.board(project_id)
    assert [card.wafer_class.name for card in board.cards] == ["none", "Center", "Donut"]
    assert board.counts.wafers == 0


async def test_a_dropped_folder_labels_like_a_zip_and_its_path_goes_nowhere(studio: Studio, project_id: str) -> None:
    files = [
        UploadFile("../../../etc/Donut/x.csv", die_list([grid(5)])),
        UploadFile("C:\\windows\\Donut\\y.csv", die_list([grid(6)])),
    ]
    preview = await studio.uploads.stage(project_id, files)
    assert [(group.label, group.class_name) for group in preview.labels] == [("Donut", "Donut")]
    await studio.uploads.commit(preview.import_id)
    page = await studio.wafers.page(project_id)
    assert all("etc" not in each.source_name and "windows" not in each.source_name for each in page.wafers)


async def test_the_person_says_where_labels_go(studio: Studio, project_id: str) -> None:
    archive = zipped({f"{label}/a.csv": die_list([grid(seed)]) for seed, label in enumerate(["a", "b", "c"])})
    preview = await studio.uploads.stage(project_id, [UploadFile("x.zip", archive)])
    center = await _class(studio, project_id, "Center")
    assignments = {"a": Assignment(class_id=center), "b": Assignment(new_name="Beta"), "c": Assignment()}
    done = await studio.uploads.commit(preview.import_id, assignments=assignments)
    assert (done.count, done.left_out, len(done.new_classes)) == (2, 1, 1)
    assert done.added[center] == 1


async def test_duplicates_are_counted_and_left_out(studio: Studio, project_id: str) -> None:
    center, donut = await _class(studio, project_id, "Center"), await _class(studio, project_id, "Donut")
    await studio.wafers.draw(donut, grid(1))
    preview = await studio.uploads.stage(project_id, _files(1, 2, 2, 3), class_id=center)
    assert (preview.read, preview.new, preview.duplicates) == (4, 2, 1)
    assert [(each.name, each.count) for each in preview.already] == [("Donut", 1)]
    done = await studio.uploads.commit(preview.import_id)
    assert (done.count, done.left_out) == (2, 2)
    again = await studio.uploads.stage(project_id, _files(1, 2, 3), class_id=center)
    assert again.new == 0
    nothing = await studio.uploads.commit(again.import_id)
    assert (nothing.count, nothing.change) == (0, None)
    third = await studio.uploads.stage(project_id, _files(1, 2), class_id=center)
    assert (await studio.uploads.commit(third.import_id, keep_duplicates=True)).count == 2
    shown = (await studio.wafers.page(project_id, center)).wafers
    assert {each.duplicates for each in shown} == {0, 1}


async def test_a_second_commit_adds_nothing(studio: Studio, project_id: str) -> None:
    preview = await studio.uploads.stage(project_id, _files(1, 2), class_id=await _class(studio, project_id, "Center"))
    done = await asyncio.gather(*(studio.uploads.commit(preview.import_id) for _ in range(3)))
    assert [each.count for each in done] == [2, 2, 2]
    assert (await studio.uploads.commit(preview.import_id)).count == 2
    assert (await studio.projects.board(project_id)).counts.wafers == 2


async def test_a_process_that_dies_between_stage_and_commit_leaves_the_upload_whole(
    settings: GatewaySettings, studio: Studio, project_id: str
) -> None:
    preview = await studio.uploads.stage(project_id, _files(1, 2))
    async with await Studio.open(settings, background=False) as restarted:
        assert (await restarted.projects.board(project_id)).counts.wafers == 0
        assert (await restarted.uploads.preview(preview.import_id)).new == 2
        await restarted.uploads.commit(preview.import_id, class_id=await _class(restarted, project_id, "Donut"))
    assert (await studio.projects.board(project_id)).counts.wafers == 2


async def test_a_commit_that_fails_late_adds_nothing_at_all(
    studio: Studio, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zipped({"Center/a.csv": die_list([grid(1)]), "New one/b.csv": die_list([grid(2)])})
    preview = await studio.uploads.stage(project_id, [UploadFile("x.zip", archive)])

    def full_disk(*_: object) -> None:
        raise ResourceExhaustedError("The disk is full.", reason="DISK_FULL")

    with monkeypatch.context() as patch:
        patch.setattr(people, "log", full_disk)
        with pytest.raises(ResourceExhaustedError):
            await studio.uploads.commit(preview.import_id)
    board = await studio.projects.board(project_id)
    assert (len(board.cards), board.counts.wafers) == (3, 0)
    assert await studio.history.list(project_id) == ()
    assert (await studio.uploads.commit(preview.import_id)).count == 2


async def test_deleting_while_uploading_ends_in_a_clear_answer(studio: Studio, project_id: str) -> None:
    center = await _class(studio, project_id, "Center")
    into_class = await studio.uploads.stage(project_id, _files(1), class_id=center)
    into_project = await studio.uploads.stage(project_id, _files(2))
    await studio.classes.delete(center)
    with pytest.raises(NotFoundError) as caught:
        await studio.uploads.commit(into_class.import_id)
    assert caught.value.reason == "CLASS_NOT_FOUND"
    await studio.projects.trash(project_id)
    with pytest.raises(NotFoundError) as caught:
        await studio.uploads.commit(into_project.import_id)
    assert caught.value.reason == "PROJECT_NOT_FOUND"
    await studio.projects.restore(project_id)
    assert (await studio.projects.board(project_id)).counts.wafers == 0


async def test_what_cannot_be_read_is_named_and_does_not_sink_the_rest(studio: Studio, project_id: str) -> None:
    files = [
        UploadFile("good.csv", die_list([grid(1)])),
        UploadFile("empty.csv", b""),
        UploadFile("noise.bin", bytes(range(256)) * 9),
        UploadFile("evil.zip", zipped({"../../outside.csv": die_list([grid(2)]), "/abs.csv": die_list([grid(3)])})),
    ]
    preview = await studio.uploads.stage(project_id, files)
    assert preview.read >= 1
    assert {"empty.csv", "noise.bin"} <= {each.name for each in preview.skipped}
    assert preview.skipped_count == len(preview.skipped)
    assert all(each.message for each in preview.skipped)
    await studio.uploads.commit(preview.import_id)


async def test_the_grid_of_a_picture_is_guessed_and_said_so(studio: Studio, project_id: str) -> None:
    colours = {0: (255, 255, 255), 1: (60, 170, 80), 2: (200, 30, 30)}
    dies = grid(4, 16, 16)
    picture = Image.new("RGB", (16 * 12, 16 * 12), "white")
    for row in range(16):
        for column in range(16):
            tile = Image.new("RGB", (11, 11), colours[int(dies[row, column])])
            picture.paste(tile, (column * 12, row * 12))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    preview = await studio.uploads.stage(project_id, [UploadFile("w.png", buffer.getvalue())])
    assert (preview.read, preview.guessed_geometry, preview.lot_missing) == (1, 1, 1)


@pytest.mark.parametrize(
    ("files", "error", "reason"),
    [
        ([], InvalidArgumentError, "NO_FILES"),
        ([UploadFile(f"{i}.csv", b"x") for i in range(51)], InvalidArgumentError, "TOO_MANY_FILES"),
        ([UploadFile("big.csv", b"x" * ((1 << 20) + 1))], ResourceExhaustedError, "UPLOAD_TOO_LARGE"),
    ],
)
async def test_uploads_over_the_limits_are_refused_at_the_door(
    studio: Studio,
    project_id: str,
    settings: GatewaySettings,
    files: list[UploadFile],
    error: type[TeachwaferError],
    reason: str,
) -> None:
    with pytest.raises(error) as caught:
        await studio.uploads.stage(project_id, files)
    assert caught.value.reason == reason
    assert not list(settings.home.glob("imports/*"))


@pytest.mark.parametrize("import_id", ["", "x", "../../..", "0" * 32, "a" * 10_000])
async def test_unknown_uploads_are_not_found(studio: Studio, import_id: str) -> None:
    with pytest.raises(NotFoundError):
        await studio.uploads.commit(import_id)
    with pytest.raises(NotFoundError):
        await studio.uploads.preview(import_id)
    await studio.uploads.discard(import_id)


async def test_a_discarded_upload_is_gone(studio: Studio, project_id: str, settings: GatewaySettings) -> None:
    preview = await studio.uploads.stage(project_id, _files(1))
    await studio.uploads.discard(preview.import_id)
    assert not list(settings.home.glob("imports/*"))
    with pytest.raises(NotFoundError):
        await studio.uploads.commit(preview.import_id)


@pytest.mark.data
async def test_real_wafers_are_read_added_and_counted_by_lot(
    studio: Studio, project_id: str, data_folder: Path
) -> None:
    preview = await studio.uploads.stage(project_id, [UploadFile("s.npz", data_folder / "wafers_small.npz")])
    done = await studio.uploads.commit(preview.import_id)
    board = await studio.projects.board(project_id)
    assert done.count == preview.new == board.counts.wafers
    assert board.training.open
    assert all(card.counts.lots > 1 for card in board.cards)


async def test_wafers_of_another_project_cannot_be_mixed_in(studio: Studio, project_id: str) -> None:
    other = await studio.projects.create("Other", classes=["Center"])
    mine = await studio.wafers.add(await _class(studio, project_id, "Center"), wafers(2))
    theirs = await studio.wafers.add(await _class(studio, other.project_id, "Center"), wafers(2))
    with pytest.raises(InvalidArgumentError):
        await studio.wafers.delete([*mine.wafer_ids, *theirs.wafer_ids])
    with pytest.raises(InvalidArgumentError):
        await studio.wafers.move(mine.wafer_ids, await _class(studio, other.project_id, "Center"))
    with pytest.raises(NotFoundError):
        await studio.uploads.stage(project_id, _files(9), class_id=await _class(studio, other.project_id, "Center"))
    with pytest.raises(NotFoundError):
        await studio.wafers.page(project_id, await _class(studio, other.project_id, "Center"))


async def _class(studio: Studio, project_id: str, name: str) -> str:
    return next(each.class_id for each in await studio.classes.list(project_id) if each.name == name)


async def test_a_full_disk_is_said_and_nothing_is_left(
    studio: Studio, project_id: str, settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceExhaustedError) as caught:
        await studio.uploads.stage(project_id, _files(1))
    assert caught.value.reason == "DISK_FULL"
    assert not list(settings.home.glob("imports/*"))
    with pytest.raises(NotFoundError):
        await studio.uploads.stage(project_id, [UploadFile("gone.csv", settings.home / "gone.csv")])


async def test_purging_a_project_removes_the_originals_that_no_other_needs(
    studio: Studio, settings: GatewaySettings
) -> None:
    def kept() -> int:
        return len([file for file in (settings.home / "store" / "originals").rglob("*") if file.is_file()])

    ids = [(await studio.projects.create(name, classes=["Center"])).project_id for name in "AB"]
    for project_id, seeds in zip(ids, ((1, 2), (1,)), strict=True):
        for seed in seeds:
            preview = await studio.uploads.stage(project_id, _files(seed))
            await studio.uploads.commit(preview.import_id)
    assert kept() == 2
    for project_id, left in zip(ids, (1, 0), strict=True):
        await studio.projects.trash(project_id)
        await studio.projects.purge(project_id)
        assert kept() == left
