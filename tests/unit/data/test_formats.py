"""Finding a file's format, and what no file may do to us whatever its format."""

import io
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from services.common.errors import NotFoundError
from services.common.formats import ReadLimits, all_formats, read_wafers, sniff

CSV = b"lot,wafer,x,y,bin\nA,1,0,0,1\nA,1,1,0,2\n"


def zipped(entries: dict[str, bytes], **options: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def npz(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def png(size: tuple[int, int] = (8, 8), file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image = Image.new("L", size, 0)
    image.paste(127, (1, 1, size[0] - 1, size[1] - 1))
    image.putpixel((3, 3), 255)
    image.save(buffer, file_format)
    return buffer.getvalue()


SET = npz(dies=np.ones(4, np.uint8), shapes=np.array([[2, 2]]), labels=np.array(["Donut"]))
FILES = {
    "CSV die list": CSV,
    "picture": png(),
    "NumPy archive": SET,
    "zip with a folder a class": zipped({"a/b.csv": CSV}),
}


def test_every_module_with_a_format_is_found() -> None:
    assert {each.name for each in all_formats()} >= set(FILES)


@pytest.mark.parametrize("expected", FILES)
def test_content_tells_the_format_and_the_name_does_not(expected: str) -> None:
    found = sniff("misleading.pdf", FILES[expected])
    assert found is not None
    assert found.name == expected


@pytest.mark.parametrize("data", [b"%PDF-1.7", b"MZ\x90\0\0\0", b"\x80\x04\x95", b"hello world", b"{}", b"\xff" * 50])
def test_unknown_content_is_said_to_be_so(data: bytes) -> None:
    report = read_wafers("a.png", data)
    assert report.wafers == []
    assert report.format_name == ""
    assert "known format" in report.skipped[0].reason


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_reading_from_bytes_file_and_path_is_equal(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(data)
    reports = [read_wafers("a", data), read_wafers("a", path)]
    with path.open("rb") as file:
        reports.append(read_wafers("a", file))
    for report in reports:
        assert report.skipped == []
        assert [each.map.sha256() for each in report.wafers] == [each.map.sha256() for each in reports[0].wafers]


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_a_file_cut_anywhere_never_crashes(data: bytes) -> None:
    for length in range(0, len(data), max(1, len(data) // 60)):
        report = read_wafers("a", data[:length])
        assert report.wafers or report.skipped


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_file_with_flipped_bytes_never_crashes(name: str, data: st.DataObject) -> None:
    content = bytearray(FILES[name])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    report = read_wafers("a", bytes(content))
    assert report.wafers or report.skipped


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
@example(b"")
@example(b"x,y,bin\n\xff\xfe")
@example(b"x,y,bin\n1e400,nan,inf\n")
@example(b'x,y,bin\n"1,2')
def test_any_bytes_never_crash(data: bytes) -> None:
    for prefix in (b"", b"x,y,bin\n", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04"):
        report = read_wafers("a", prefix + data)
        assert report.wafers or report.skipped


def test_empty_huge_and_missing_files(tmp_path: Path) -> None:
    assert read_wafers("a", b"").skipped[0].reason == "The file is empty."
    assert "at most 10 bytes" in read_wafers("a", CSV, ReadLimits(max_file_bytes=10)).skipped[0].reason
    with pytest.raises(NotFoundError):
        read_wafers("a", tmp_path / "none")
    with pytest.raises(NotFoundError):
        read_wafers("a", tmp_path)


def test_a_file_is_taken_whole_or_not_at_all() -> None:
    many = npz(arr_0=np.ones((5, 3, 3), np.uint8))
    report = read_wafers("a", many, ReadLimits(max_wafers=4))
    assert report.wafers == []
    assert "at most 4 wafers" in report.skipped[0].reason


# Archives


def test_folders_are_classes() -> None:
    report = read_wafers(
        "lot.zip",
        zipped(
            {
                "set/Donut/1.csv": CSV,
                "set/Edge Ring/2.png": png(),
                "loose.csv": CSV,
                "set/own/3.npz": SET,
                "__MACOSX/set/Donut/._1.csv": b"junk",
                "set/Donut/.DS_Store": b"junk",
            }
        ),
    )
    assert report.skipped == []
    assert [(each.label, each.source_name) for each in report.wafers] == [
        ("Donut", "set/Donut/1.csv"),
        ("Edge Ring", "set/Edge Ring/2.png"),
        (None, "loose.csv"),
        ("Donut", "set/own/3.npz#0"),
    ]
    assert report.format_name == "zip with a folder a class"


@pytest.mark.parametrize("name", [b"\x00/b.csv", b"a/\x00.csv"])
def test_entries_with_a_nul_in_their_name_are_refused(name: bytes) -> None:
    report = read_wafers("a.zip", zipped({"a/b.csv": CSV}).replace(b"a/b.csv", name))
    assert not report.wafers
    assert "control characters" in report.skipped[0].reason


def test_an_archive_without_wafer_files_says_so() -> None:
    report = read_wafers("a.zip", zipped({"__MACOSX/b.csv": CSV}))
    assert "without any" in report.skipped[0].reason


@pytest.mark.parametrize("name", ["../a.csv", "a/../../b.csv", "/etc/a.csv", "C:/a.csv", "..\\a.csv", "a/\x07.csv"])
def test_names_that_lead_out_are_refused(name: str) -> None:
    report = read_wafers("a.zip", zipped({name: CSV, "ok/a.csv": CSV}))
    assert len(report.wafers) == 1
    assert report.skipped[0].reason.startswith("Its name")


def test_bombs_and_crowds_are_refused_before_unpacking() -> None:
    bomb = zipped({"a/zeros.csv": bytes(30_000_000), "a/ok.csv": CSV})
    assert len(bomb) < 100_000
    report = read_wafers("a.zip", bomb)
    assert len(report.wafers) == 1
    assert "200 times" in report.skipped[0].reason
    assert "unpacked" in read_wafers("a.zip", bomb, ReadLimits(max_unpacked_bytes=1000)).skipped[0].reason
    crowd = zipped({f"a/{n}.csv": CSV for n in range(20)})
    assert "at most 10 entries" in read_wafers("a.zip", crowd, ReadLimits(max_entries=10)).skipped[0].reason
    assert "at most 5 wafers" in read_wafers("a.zip", crowd, ReadLimits(max_wafers=5)).skipped[0].reason


def test_archives_in_archives_links_and_damaged_entries_are_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/inner.zip", zipped({"b/c.csv": CSV}))
        link = zipfile.ZipInfo("a/link.csv")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("a/damaged.csv", CSV + b"A,1,7,7,1\n")
        archive.writestr("a/ok.csv", CSV)
    data = buffer.getvalue().replace(b"A,1,7,7,1", b"A,1,8,8,1")
    report = read_wafers("a.zip", data)
    assert len(report.wafers) == 1
    reasons = {each.name: each.reason for each in report.skipped}
    assert "inside an archive" in reasons["a/inner.zip"]
    assert "link" in reasons["a/link.csv"]
    assert "damaged" in reasons["a/damaged.csv"]


def test_names_of_korean_windows_are_read() -> None:
    data = zipped({"XXXX/a.csv": CSV}).replace(b"XXXX", "도넛".encode("cp949"))
    assert read_wafers("a.zip", data).wafers[0].label == "도넛"


def test_an_encrypted_entry_is_told_so() -> None:
    data = bytearray(zipped({"a/b.csv": CSV}))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in read_wafers("a.zip", bytes(data)).skipped[0].reason
