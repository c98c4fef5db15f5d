import re
import string
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import gateway
from gateway.i18n import LANGUAGES, Messages, catalogue, choose_language
from gateway.i18n.messages import particle
from services.common.errors import InternalError, InvalidArgumentError, UnavailableError

GATEWAY = Path(gateway.__file__).parent
CODE = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("pages", "components", "views", "i18n")
    for path in sorted((GATEWAY / folder).glob("*.py"))
)


def gaps(text):
    texts = text.values() if isinstance(text, dict) else [text]
    return [{name for _, name, _, _ in string.Formatter().parse(each) if name} for each in texts]


def test_all_languages_have_the_same_keys():
    keys = {language: set(catalogue(language)) for language in LANGUAGES}
    assert keys["en"] == keys["ko"]
    assert len(keys["en"]) > 400


@pytest.mark.parametrize("key", sorted(catalogue("en")))
def test_translations_fill_the_same_gaps(key):
    english = set().union(*gaps(catalogue("en")[key])) | {"n"}
    for language in LANGUAGES:
        for filled in gaps(catalogue(language)[key]):
            assert filled <= english | {"month"}, f"{language}: {key}"


def test_no_text_is_empty_and_korean_ones_are_korean():
    hangul = re.compile("[가-힣]")
    same = []
    for key, text in catalogue("ko").items():
        for each in text.values() if isinstance(text, dict) else [text]:
            assert each.strip(), key
            if not hangul.search(each):
                same.append(key)
    # Names, texts that are all gaps, and measures that have one name everywhere.
    measures = {"evaluate.f1", "evaluate.auroc", "models.score_normal"}
    assert set(same) == {"app.name", "upload.skipped_item", "try.accepted"} | measures


def test_every_key_that_code_names_exists():
    named = set(re.findall(r"\bt\(\s*\"([a-z_]+\.[a-zA-Z_]+)\"", CODE))
    assert named
    assert named <= set(catalogue("en"))


def test_every_text_is_used():
    prefixes = tuple(re.findall(r"f\"([a-z_]+\.[a-z_]*)\{", CODE))
    quoted = set(re.findall(r"[\"']([a-z_]+\.[a-zA-Z0-9_]+)[\"']", CODE))
    unused = [
        key
        for key in catalogue("en")
        if key not in quoted and not key.startswith(prefixes) and not key.endswith("_help")
    ]
    assert unused == []


def test_reasons_that_pages_can_meet_have_a_text():
    places = ["gateway/studio", "gateway/catalogue", "services/common/formats", "services/common/jobs"]
    files = [path for place in places for path in (GATEWAY.parent / place).rglob("*.py")]
    files += [GATEWAY / name for name in ("clients.py", "uploads.py", "guards.py")]
    raised = {reason for path in files for reason in re.findall(r"reason=\"([A-Z_]+)\"", path.read_text("utf-8"))}
    assert raised
    assert {reason for reason in raised if f"reason.{reason}" not in catalogue("ko")} == set()


@pytest.mark.parametrize(
    ("word", "pair", "expected"),
    [
        ("스크래치", "을/를", "를"),
        ("도넛", "을/를", "을"),
        ("Scratch", "을/를", "를"),
        ("Edge-Ring", "을/를", "을"),
        ("Donut", "이/가", "이"),
        ("결과물", "으로/로", "로"),
        ("판정", "으로/로", "으로"),
        ("버전 1", "으로/로", "로"),
        ("3", "을/를", "을"),
        ("2", "을/를", "를"),
        ("", "을/를", "를"),
    ],
)
def test_korean_particles_fit_the_sound_before_them(word, pair, expected):
    assert particle(word, pair) == expected


def test_plurals_and_numbers():
    t = Messages("en")
    assert t("count.wafers", n=1) == "1 wafer"
    assert t("count.wafers", n=12345) == "12,345 wafers"
    assert Messages("ko")("count.wafers", n=1) == "웨이퍼 1장"


def test_lengths_of_time_and_points_in_time():
    t = Messages("en")
    now = datetime(2026, 11, 24, 12, tzinfo=UTC)
    assert t.duration(9.4) == "9 s"
    assert t.duration(130) == "2 min 10 s"
    assert t.duration(7290) == "2 h 1 min"
    assert t.moment(now - timedelta(minutes=1), now) == "1 minute ago"
    assert t.moment(now - timedelta(hours=5), now) == "5 hours ago"
    assert t.moment(now - timedelta(days=3), now) == "21 Nov 2026"
    assert Messages("ko").moment(now - timedelta(days=3), now) == "2026년 11월 21일"
    assert t.moment(None) == "–"


def test_sizes():
    t = Messages("en")
    assert [t.size(each) for each in (512, 1536, 512 * 1024**2)] == ["512 B", "1.5 KB", "512 MB"]


def test_errors_are_said_in_the_language_by_their_reason():
    error = InvalidArgumentError("no", reason="CLASS_NAME_TAKEN")
    assert Messages("ko").error(error) == catalogue("ko")["reason.CLASS_NAME_TAKEN"]


def test_errors_without_a_text_keep_what_the_server_said_behind_their_kind():
    error = InvalidArgumentError("Expected 1. Received: 2.", reason="NEVER_HEARD_OF")
    assert Messages("en").error(error).endswith("Expected 1. Received: 2.")
    assert "127.0.0.1" not in Messages("en").error(UnavailableError("127.0.0.1:8021 refused"))


def test_faults_of_ours_show_nothing_of_the_inside():
    assert Messages("en").error(ValueError("secret path")) == catalogue("en")["reason.INTERNAL"]
    assert "secret" not in Messages("en").error(InternalError("secret path"))


@pytest.mark.parametrize(
    ("chosen", "accepted", "expected"),
    [
        ("ko", "en-US", "ko"),
        ("", "ko-KR,ko;q=0.9,en;q=0.8", "ko"),
        ("xx", "de,en;q=0.5", "en"),
        (None, "", "en"),
        (None, "fr", "en"),
    ],
)
def test_language_is_the_chosen_one_then_the_browsers_then_the_default(chosen, accepted, expected):
    assert choose_language(chosen, accepted, "en") == expected
