from gateway.shelf import Shelf


def name_of(address):
    return address.rsplit("/", 1)[1]


def test_what_is_put_there_is_found_under_its_address():
    shelf = Shelf()
    item = shelf.get(name_of(shelf.put(b"a,b", "text/csv", "a.csv")))
    assert (item.content, item.media_type, item.download_name) == (b"a,b", "text/csv", "a.csv")
    assert shelf.get("nothing") is None


def test_the_oldest_leave_when_there_is_no_room():
    shelf = Shelf(max_bytes=10)
    addresses = [shelf.put(b"xxxx") for _ in range(3)]
    assert shelf.get(name_of(addresses[0])) is None
    assert shelf.get(name_of(addresses[2])) is not None


def test_the_same_key_keeps_its_address_as_long_as_it_is_there():
    shelf = Shelf(max_bytes=10)
    first = shelf.put(b"xxxx", key="a")
    assert shelf.put(b"xxxx", key="a") == first
    shelf.put(b"yyyyyyyy")
    assert shelf.put(b"xxxx", key="a") != first
