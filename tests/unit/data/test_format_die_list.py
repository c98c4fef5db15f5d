import numpy as np
import pytest

from services.common.formats import read_wafers


def read(text: str | bytes, **options: frozenset[int]):
    return read_wafers("dies.csv", text.encode() if isinstance(text, str) else text, **options)


def only(text: str | bytes, **options: frozenset[int]) -> list[list[int]]:
    report = read(text, **options)
    assert report.skipped == []
    (wafer,) = report.wafers
    return wafer.map.dies.tolist()


ROWS = "-1{0}4{0}1\n0{0}4{0}7\n0{0}5{0}1\n"
EXPECTED = [[1, 2], [0, 1]]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "headings", ["x{0}y{0}bin", "DIE_X{0}DIE_Y{0}HBIN", "X Coord{0}Y Coord{0}Soft Bin", "col{0}row{0}Bin#"]
)
def test_delimiters_and_headings(delimiter: str, headings: str) -> None:
    assert only((headings + "\n" + ROWS).format(delimiter)) == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp949", "utf-8"])
def test_encodings(encoding: str) -> None:
    report = read(("제품,x,y,bin,label\n" + "가,0,0,1,도넛\n").encode(encoding))
    assert report.wafers[0].label == "도넛"


def test_line_ends_blank_lines_and_spaces() -> None:
    assert only("x, y, bin\r\n\r\n 0 , 0 , 1 \r\n1,0,2\r\n") == [[1, 2]]
    assert only("x,y,bin\r0,0,1\r1,0,2\r") == [[1, 2]]


def test_bins_are_kept_and_pass_bins_can_be_named() -> None:
    text = "x,y,bin\n0,0,1\n1,0,3\n2,0,-5\n"
    assert only(text) == [[1, 2, 2]]
    assert only(text, pass_bins=frozenset({1, 3})) == [[1, 1, 2]]
    bins = read(text).wafers[0].map.bins
    assert bins is not None
    assert bins.tolist() == [[1, 3, -5]]


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ("PASS fail Pass", [1, 2, 1]),
        ("P F -", [1, 2, 0]),
        ("OK NG nan", [1, 2, 0]),
        ("1 0 1", [1, 2, 1]),
        ("1 2 0", [1, 2, 0]),
        ("true False NA", [1, 2, 0]),
        ("1.0 0.0 1.0", [1, 2, 1]),
    ],
)
def test_results_in_words_and_numbers(results: str, expected: list[int]) -> None:
    rows = "".join(f"{x},0,{result}\n" for x, result in enumerate(results.split()))
    assert only("x,y,result\n" + rows) == [expected]


def test_dies_without_bin_are_not_tested_and_not_failed() -> None:
    assert only("x,y,bin\n0,0,1\n1,0,\n2,0,NaN\n3,0,2\n") == [[1, 0, 0, 2]]


def test_several_wafers_of_several_lots() -> None:
    rows = "".join(
        f"{lot},{wafer},7,{x},0,{1 if x else wafer},{label}\n"
        for x in range(3)
        for lot, wafer, label in (("A", 1, "Donut"), ("A", 2, ""), ("B", 1, "none"))
    )
    report = read("LotID,WaferID,Slot,X,Y,Bin,Failure Type\n" + rows)
    assert [(each.map.identity.lot, each.map.identity.wafer, each.label) for each in report.wafers] == [
        ("A", "1", "Donut"),
        ("A", "2", None),
        ("B", "1", "none"),
    ]
    assert report.wafers[0].map.identity.slot == 7
    assert [each.map.dies.tolist() for each in report.wafers] == [[[1, 1, 1]], [[2, 1, 1]], [[1, 1, 1]]]
    assert report.wafers[1].source_name == "dies.csv#A/2/7"


def test_a_die_tested_again_counts_as_tested_last() -> None:
    report = read("x,y,bin\n0,0,5\n1,0,1\n0,0,1\n")
    assert report.wafers[0].map.dies.tolist() == [[1, 1]]
    assert any("more than once" in warning for warning in report.warnings)


def test_without_headings_columns_are_guessed_and_said_so() -> None:
    report = read("0,0,1\n1,0,2\n")
    assert report.wafers[0].map.dies.tolist() == [[1, 2]]
    assert any("no headings" in warning for warning in report.warnings)


def test_direction_of_y_is_only_in_doubt_without_rows() -> None:
    assert any("y grows" in warning for warning in read("x,y,bin\n0,0,1\n").warnings)
    assert not any("y grows" in warning for warning in read("column,row,bin\n0,0,1\n").warnings)


def test_unreadable_rows_are_left_out_and_counted() -> None:
    report = read("x,y,bin\n0,0,1\n?,0,1\n0.5,0,1\n,,\ninf,0,1\n" + "".join(f"{x},1,1\n" for x in range(9)))
    assert report.wafers[0].map.dies.shape == (2, 9)
    assert any("4 rows" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x,y,bin\n", "no dies"),
        ("x,y,lot\n1,1,1\n", "bin or result"),
        ("x,y,bin\n0,0,1\n5000,0,1\n", "count dies"),
        ("x,y,bin\n0,0,1\n99999999999999999999999,0,1\n1e300,1,1\n,,\n", "Most rows"),
        ("x,y,bin\na,b,1\n", "Most rows"),
        ("x,y,bin\n0,0,\n", "No die has a result"),
        ("x,y,bin\n0,0,maybe\n", "'maybe'"),
        ("x,y,bin\n0,0,99999999999\n", "32 bits"),
        ("x,y,result\n0,0,7\n", "Expected results"),
        ("lot,x,y,bin\n" + "L" * 300 + ",0,0,1\n", "256 characters"),
        ('x,y,bin\n0,0,"' + "1" * 200_000 + '"\n', "no CSV"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, reason: str) -> None:
    report = read(text)
    assert report.wafers == []
    assert reason in report.skipped[0].reason


def test_one_bad_wafer_does_not_take_the_others_along() -> None:
    report = read("wafer,x,y,bin\n1,0,0,1\n2,0,0,1\n2,9000,0,1\n3,0,0,2\n")
    assert [each.map.identity.wafer for each in report.wafers] == ["1", "3"]
    assert report.skipped[0].name == "dies.csv#2"


def test_a_real_sized_list_round_trips() -> None:
    grid = np.random.default_rng(0).integers(0, 3, (60, 55)).astype(np.uint8)
    grid[[0, -1]] = grid[:, [0, -1]] = 1
    rows = "".join(f"{c},{r},{die}\n" for (r, c), die in np.ndenumerate(grid) if die)
    assert only("x,y,bin\n" + rows) == grid.tolist()
