from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gateway.catalogue.patterns import PALETTE, PATTERNS, guess_pattern, next_colour
from gateway.studio import Studio
from gateway.studio.rendering import thumbnail
from services.common.dataset import Origin, Split, open_dataset
from services.common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from services.common.store import open_store
from services.common.wafer_map import Notch, WaferGeometry, WaferMap
from tests.unit.studio.wafer_makers import grid, wafers


@pytest.fixture
async def class_ids(studio: Studio) -> list[str]:
    """Ids of the classes none, Center and Donut of a new project."""
    project = await studio.projects.create("P", classes=["Center", "Donut"])
    return [each.class_id for each in await studio.classes.list(project.project_id)]


@pytest.fixture
async def project_id(studio: Studio, class_ids: list[str]) -> str:
    return (await studio.projects.list())[0].project.project_id


@pytest.mark.parametrize("page_size", [1, 4, 7, 100])
async def test_pages_show_every_wafer_once_newest_first(
    studio: Studio, project_id: str, class_ids: list[str], page_size: int
) -> None:
    added = await studio.wafers.add(class_ids[1], wafers(7))
    await studio.wafers.add(class_ids[2], wafers(3, first=50))
    seen: list[str] = []
    token = ""
    while True:
        page = await studio.wafers.page(project_id, class_ids[1], page_size=page_size, page_token=token)
        assert page.total == 7
        seen += [each.wafer_id for each in page.wafers]
        token = page.next_token
        if not token:
            break
    assert seen == list(reversed(added.wafer_ids))


async def test_a_page_stays_true_while_wafers_come_and_go(
    studio: Studio, project_id: str, class_ids: list[str]
) -> None:
    added = await studio.wafers.add(class_ids[1], wafers(6))
    first = await studio.wafers.page(project_id, page_size=3)
    await studio.wafers.add(class_ids[1], wafers(4, first=100))
    await studio.wafers.delete([first.wafers[-1].wafer_id])
    second = await studio.wafers.page(project_id, page_size=3, page_token=first.next_token)
    assert [each.wafer_id for each in second.wafers] == list(reversed(added.wafer_ids[:3]))


async def test_a_foreign_token_is_refused(studio: Studio, project_id: str) -> None:
    for token in ("x", "eyJ", "W10", "!" * 5000):
        with pytest.raises(InvalidArgumentError):
            await studio.wafers.page(project_id, page_token=token)


async def test_a_drawn_wafer_comes_back_as_it_was_drawn(studio: Studio, class_ids: list[str]) -> None:
    added = await studio.wafers.draw(class_ids[1], grid(3), lot="한글 lot\x00")
    detail = await studio.wafers.get(added.wafer_ids[0])
    assert (detail.map.dies == grid(3)).all()
    assert (detail.info.lot, detail.info.origin) == ("한글 lot", Origin.DRAWN)
    assert detail.info.failed == int((grid(3) == 2).sum())
    again = await studio.wafers.draw(class_ids[1], grid(3))
    assert (again.wafer_ids, again.duplicates, again.change) == ((), 1, None)
    for wrong in (np.zeros((3, 3), np.uint8), np.full((3, 3), 7, np.uint8), np.ones((3, 3), np.int64)):
        with pytest.raises(InvalidArgumentError):
            await studio.wafers.draw(class_ids[1], wrong)


async def test_bins_identity_and_geometry_survive(studio: Studio, class_ids: list[str]) -> None:
    (base,) = wafers(1)
    bins = np.arange(120, dtype=np.int32).reshape(12, 10) - 7
    sent = WaferMap(base.dies, base.identity, WaferGeometry(Notch.LEFT, 4.5, 3.25), bins)
    added = await studio.wafers.add(class_ids[0], [sent])
    kept = (await studio.wafers.get(added.wafer_ids[0])).map
    assert kept.bins is not None
    assert (kept.bins == bins).all()
    assert (kept.identity, kept.geometry) == (sent.identity, sent.geometry)


async def test_deleted_and_moved_wafers_come_back_by_undo(
    studio: Studio, project_id: str, class_ids: list[str]
) -> None:
    ids = (await studio.wafers.add(class_ids[1], wafers(5))).wafer_ids
    moved = await studio.wafers.move(ids[:3], class_ids[2])
    deleted = await studio.wafers.delete(ids[2:])
    assert (moved.params["count"], deleted.params["count"]) == (3, 3)
    board = await studio.projects.board(project_id)
    assert [card.counts.wafers for card in board.cards] == [0, 0, 2]
    await studio.history.undo(deleted.change_id)
    await studio.history.undo(moved.change_id)
    board = await studio.projects.board(project_id)
    assert [card.counts.wafers for card in board.cards] == [0, 5, 0]
    with pytest.raises(NotFoundError):
        await studio.wafers.delete(["nothing"])
    with pytest.raises(InvalidArgumentError):
        await studio.wafers.move([], class_ids[1])


async def test_a_blank_wafer_takes_the_outline_of_the_newest_one(
    studio: Studio, project_id: str, class_ids: list[str]
) -> None:
    circle = await studio.wafers.blank(project_id)
    assert circle.shape == (32, 32)
    assert (circle[0, 0], circle[16, 16]) == (0, 1)
    await studio.wafers.draw(class_ids[1], grid(1))
    outline = await studio.wafers.blank(project_id)
    assert (outline == (grid(1) > 0)).all()
    assert (await studio.wafers.blank(project_id, rows=5, columns=9)).shape == (5, 9)
    with pytest.raises(InvalidArgumentError):
        await studio.wafers.blank(project_id, rows=5000)


async def test_a_sheet_shows_the_wafers_of_its_page_in_their_order(
    studio: Studio, project_id: str, class_ids: list[str]
) -> None:
    await studio.wafers.add(class_ids[1], wafers(25))
    page = await studio.wafers.page(project_id, page_size=24)
    sprite = await studio.pictures.page(project_id, page_size=24, tile=32)
    assert sprite.wafer_ids == tuple(each.wafer_id for each in page.wafers)
    sheet = _pixels(sprite.png)
    assert sheet.shape == (2 * 32, 20 * 32, 4)
    for index in (0, 7, 23):
        top, left = index // sprite.columns * 32, index % sprite.columns * 32
        detail = await studio.wafers.get(sprite.wafer_ids[index])
        assert (sheet[top + 1 : top + 31, left + 1 : left + 31] == thumbnail(detail.map.dies, 30)).all()
    assert (await studio.pictures.page(project_id, page_size=24, tile=32)).etag == sprite.etag
    empty = await studio.pictures.page(project_id, class_ids[2])
    assert empty.wafer_ids == ()
    assert _pixels(empty.png)[..., 3].max() == 0


@pytest.mark.parametrize("shape", [(12, 10), (1, 1), (7, 150), (200, 190)])
def test_pass_is_green_fail_never_is_and_no_die_is_transparent(shape: tuple[int, int]) -> None:
    dies = np.ones(shape, np.uint8)
    green = thumbnail(dies, 46)
    assert (green[..., 3] == 255).all()
    assert (green[..., 1].astype(int) > green[..., 0].astype(int) + 20).all()
    dies[:] = 2
    red = thumbnail(dies, 46)
    assert (red[..., 0].astype(int) > red[..., 1].astype(int) + 50).all()
    mixed = grid(5, 60, 60)
    pixels = thumbnail(mixed, 46)
    shown = pixels[pixels[..., 3] > 0].astype(int)
    is_green, is_red = shown[:, 1] > shown[:, 0], shown[:, 0] > shown[:, 1]
    assert (is_green | is_red).all()
    assert is_red.any()


def test_a_single_failing_die_is_seen_in_a_thumbnail_of_a_large_wafer() -> None:
    dies = np.ones((300, 300), np.uint8)
    dies[150, 150] = 2
    pixels = thumbnail(dies, 46).astype(int)
    assert (pixels[..., 0] > pixels[..., 1]).sum() == 1


async def test_a_picture_shows_whole_dies_the_notch_and_the_heat(studio: Studio, class_ids: list[str]) -> None:
    plain = WaferMap(grid(2, 20, 16))
    notched = WaferMap(grid(2, 20, 16), geometry=WaferGeometry(Notch.DOWN))
    heat = np.zeros((20, 16), np.uint8)
    heat[5:8, 5:8] = 255
    pictures = [
        await studio.pictures.of_map(plain, size=320),
        await studio.pictures.of_map(notched, size=320),
        await studio.pictures.of_map(plain, size=320, heat=heat),
    ]
    assert len(set(pictures)) == 3
    for each in pictures:
        assert 300 <= max(_pixels(each).shape[:2]) <= 345
    with pytest.raises(InvalidArgumentError):
        await studio.pictures.of_map(plain, heat=np.zeros((3, 3), np.uint8))
    with pytest.raises(InvalidArgumentError):
        await studio.pictures.of_map(plain, size=1_000_000)
    with pytest.raises(NotFoundError):
        await studio.pictures.wafer("nothing")


async def test_the_same_wafers_are_frozen_once(studio: Studio, project_id: str, class_ids: list[str]) -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        await studio.datasets.freeze(project_id)
    assert caught.value.reason == "TOO_FEW_CLASSES"
    await studio.wafers.add(class_ids[1], wafers(30, lots=10))
    await studio.wafers.add(class_ids[2], wafers(30, first=100, lots=10))
    first = await studio.datasets.freeze(project_id)
    assert await studio.datasets.freeze(project_id) == first
    other = await studio.datasets.freeze(project_id, seed=1)
    renamed = await studio.classes.rename(class_ids[1], "Middle")
    again = await studio.datasets.freeze(project_id)
    await studio.history.undo(renamed.change_id)
    assert len({first.dataset_id, other.dataset_id, again.dataset_id}) == 3
    assert (await studio.datasets.freeze(project_id)).dataset_id == first.dataset_id
    assert [each.dataset_id for each in await studio.datasets.list(project_id)][-1] == first.dataset_id


async def test_a_frozen_lot_stands_on_one_side(
    studio: Studio, project_id: str, class_ids: list[str], home: object
) -> None:
    await studio.wafers.add(class_ids[1], wafers(40, lots=10))
    await studio.wafers.add(class_ids[2], wafers(40, first=200, lots=10))
    await studio.classes.enable(class_ids[0], False)
    frozen = await studio.datasets.freeze(project_id)
    assert sum(frozen.wafers.values()) == 80
    assert frozen.wafers["test"] > 0
    found = open_dataset(open_store(f"{home}/store"), frozen.dataset_id)
    sides: dict[str, set[Split]] = {}
    for wafer in found.iter_wafers():
        sides.setdefault(wafer.lot, set()).add(wafer.split)
    assert all(len(each) == 1 for each in sides.values())
    assert [each.class_id for each in found.classes] == class_ids[1:]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_canonical_names_are_recognised_however_they_are_written(pattern: str) -> None:
    assert {guess_pattern(each) for each in (pattern, pattern.upper(), pattern.replace("-", "_"))} == {pattern}


def test_patterns_are_recognised_in_korean_and_own_names_are_not() -> None:
    assert [guess_pattern(each) for each in ("스크래치", "엣지 링", "정상", "Shot grid", "")] == [
        "Scratch",
        "Edge-Ring",
        "none",
        "",
        "",
    ]


def test_colours_repeat_only_when_all_are_taken() -> None:
    taken: list[str] = []
    for _ in range(2 * len(PALETTE)):
        taken.append(next_colour(taken))
    assert taken == [*PALETTE, *PALETTE]


def _pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.mode == "RGBA"
        return np.array(picture)
