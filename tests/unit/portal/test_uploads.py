import pytest

from gateway.uploads import Tickets, UploadLimits, safe_name
from services.common.errors import InvalidArgumentError, PermissionDeniedError, ResourceExhaustedError


@pytest.fixture
def tickets(tmp_path):
    return Tickets(tmp_path / "uploads", UploadLimits(max_bytes=1000, max_files=2))


def send(tickets, ticket, session, name):
    path = tickets.place(ticket, session)
    path.write_bytes(b"content")
    return tickets.add(ticket, path, name)


def test_files_reach_the_page_that_asked_for_them(tickets):
    ticket = tickets.issue("me")
    first = send(tickets, ticket, "me", "lot/wafer.png")
    (file,) = tickets.take(ticket, [first, "unknown"])
    assert file.name == "lot/wafer.png"
    assert file.path.read_bytes() == b"content"
    assert tickets.take(ticket, [first]) == []


@pytest.mark.parametrize("session", ["other", ""])
def test_another_session_cannot_use_a_ticket(tickets, session):
    ticket = tickets.issue("me")
    with pytest.raises(PermissionDeniedError) as caught:
        tickets.place(ticket, session)
    assert caught.value.reason == "UPLOAD_NOT_ALLOWED"


def test_unknown_tickets_are_refused(tickets):
    with pytest.raises(PermissionDeniedError):
        tickets.place("../../etc", "me")


def test_a_ticket_holds_no_more_files_than_allowed(tickets):
    ticket = tickets.issue("me")
    for index in range(2):
        send(tickets, ticket, "me", f"{index}.png")
    with pytest.raises(ResourceExhaustedError) as caught:
        tickets.place(ticket, "me")
    assert caught.value.reason == "TOO_MANY_FILES"


def test_files_that_nobody_took_leave_with_their_page(tickets, tmp_path):
    ticket = tickets.issue("me")
    send(tickets, ticket, "me", "a.png")
    tickets.revoke(ticket)
    assert list((tmp_path / "uploads").iterdir()) == []


def test_a_file_that_arrives_after_its_page_has_closed_is_removed(tickets, tmp_path):
    ticket = tickets.issue("me")
    path = tickets.place(ticket, "me")
    late = tmp_path / "late"
    late.write_bytes(b"content")
    tickets.revoke(ticket)
    with pytest.raises(PermissionDeniedError):
        tickets.add(ticket, late, "a.png")
    assert not late.exists()
    assert not path.exists()


def test_leftovers_of_the_last_start_are_removed(tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "old").write_bytes(b"content")
    Tickets(folder, UploadLimits(1, 1))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("a.png", "a.png"),
        ("Center/a.png", "Center/a.png"),
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("C:\\lots\\a.png", "C:/lots/a.png"),
        ("a\x00b\n.png", "ab.png"),
        ("웨이퍼.png", "웨이퍼.png"),
        ("evil\u202egnp.exe", "evilgnp.exe"),
        ("x" * 300 + ".png", "x" * 196 + ".png"),
    ],
)
def test_names_are_made_safe(sent, kept):
    assert safe_name(sent) == kept


@pytest.mark.parametrize("sent", ["", "..", "/", "\x00", " "])
def test_names_without_anything_in_them_are_refused(sent):
    with pytest.raises(InvalidArgumentError):
        safe_name(sent)
