"""Countries and continents from MaxMind DB files that the tests write."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import maxminddb
import pytest
from effort import calls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmdb_writer import MMDBWriter, SearchTreeLeaf, SearchTreeNode, TreeWriter

from enforcer.facts.records import UNKNOWN_REGION, Region
from enforcer.facts.regions import Database, DatabaseError, RegionPrefixes
from enforcer.instance import trust

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

COUNTRIES = {"DE": "EU", "FR": "EU", "US": "NA", "CA": "NA", "JP": "AS", "AU": "OC", "BR": "SA", "ZA": "AF"}


def country(code: str | None, continent: str | None = None, **more: Any) -> dict[str, Any]:
    """A record in the form of GeoLite2-Country; GeoLite2-City has more fields."""
    record: dict[str, Any] = {"registered_country": {"iso_code": "XX", "names": {"en": "Elsewhere"}}, **more}
    if code:
        record["country"] = {"geoname_id": 1, "iso_code": code, "names": {"en": f"Land {code}"}}
    if continent or code in COUNTRIES:
        record["continent"] = {"code": continent or COUNTRIES[code or ""], "names": {"en": "…"}}
    return record


def city(code: str, name: str) -> dict[str, Any]:
    where = {"latitude": 1.5, "longitude": 2.5, "accuracy_radius": 20}
    return country(code, city={"geoname_id": 7, "names": {"en": name}}, location=where)


@pytest.fixture
def record_size(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the writer use records of a given size instead of the smallest sufficient one."""

    def use(bits: int) -> None:
        def adjust(writer: Any) -> None:
            writer.record_size = bits
            writer.data_offset = bits * 2 / 8 * writer._node_counter

        monkeypatch.setattr(TreeWriter, "_adjust_record_size", adjust)

    return use


def insert(writer: MMDBWriter, network: Network, leaf: Any) -> None:
    """Sets one prefix, faster than the writer's method. Later prefixes must not cover earlier ones."""
    width, value = (128, int(network.network_address))
    length = network.prefixlen
    if writer.ip_version == 4:
        width = 32
    elif network.version == 4:
        length += 96
    node = writer.tree
    for depth in range(length - 1):
        side = value >> (width - 1 - depth) & 1
        child = node[side]
        if not isinstance(child, SearchTreeNode):
            child = node[side] = SearchTreeNode(child, child)
        node = child
    node[value >> (width - length) & 1] = leaf


def write(
    path: Path, entries: Sequence[tuple[str, Any]], version: int = 6, kind: str = "GeoLite2-Country"
) -> Path:
    writer = MMDBWriter(version, kind, ipv4_compatible=version == 6)
    found = sorted((ip_network(prefix).prefixlen, prefix, record) for prefix, record in enumerate_(entries))
    for _, prefix, record in found:
        insert(writer, ip_network(prefix), SearchTreeLeaf(entries[record][1]))
    writer.to_db_file(str(path))
    return path


def enumerate_(entries: Sequence[tuple[str, Any]]) -> list[tuple[str, int]]:
    return [(prefix, index) for index, (prefix, _) in enumerate(entries)]


def region_of(record: Any) -> Region:
    """The region in a record that maxminddb has read."""
    if not isinstance(record, dict):
        return UNKNOWN_REGION
    return record.get("country", {}).get("iso_code"), record.get("continent", {}).get("code")


def every(country: str | None, continent: str | None) -> bool:
    return True


class Trie:
    """Longest-prefix match as in the kernel's LPM trie."""

    def __init__(self, found: RegionPrefixes):
        self.regions = [UNKNOWN_REGION, *found.regions]
        self.tables: dict[int, dict[int, int]] = {}
        for length, address, number in zip(found.length, found.address, found.number, strict=True):
            table = self.tables.setdefault(int(length), {})
            value = int.from_bytes(address.tobytes(), "big")
            assert value & ((1 << (128 - int(length))) - 1) == 0
            assert value >> (128 - int(length)) not in table
            table[value >> (128 - int(length))] = int(number)

    def find(self, address: Address) -> Region:
        value = int(address) | (0xFFFF << 32 if address.version == 4 else 0)
        for length in sorted(self.tables, reverse=True):
            number = self.tables[length].get(value >> (128 - length))
            if number is not None:
                return self.regions[number]
        return UNKNOWN_REGION


def prefixes(found: RegionPrefixes) -> dict[str, Region]:
    listed = {}
    for length, address, number in zip(found.length, found.address, found.number, strict=True):
        first, bits = IPv6Address(address.tobytes()), int(length)
        mapped = first.ipv4_mapped if bits >= 96 else None
        name = f"{mapped}/{bits - 96}" if mapped is not None else f"{first}/{bits}"
        listed[name] = ([UNKNOWN_REGION, *found.regions])[number]
    return listed


ENTRIES = [
    ("1.0.0.0/24", country("AU")),
    ("1.0.1.0/24", country("JP")),
    ("2.0.0.0/8", country("FR")),
    ("2.16.0.0/12", country("DE")),
    ("8.8.8.8/32", country("US")),
    ("9.0.0.0/8", country(None, "EU")),
    ("10.0.0.0/8", country(None)),
    ("11.0.0.0/8", {"country": {"iso_code": "BR"}}),
    ("2001:db8::/32", country("DE")),
    ("2001:db8:8000::/33", country("US")),
    ("2a00::/11", country("ZA")),
    ("2a00:1::7/128", country("CA")),
]


@pytest.mark.parametrize("bits", [24, 28, 32])
def test_prefixes_of_both_families(tmp_path: Path, record_size: Callable[[int], None], bits: int) -> None:
    record_size(bits)
    with Database(write(tmp_path / "x.mmdb", ENTRIES)) as database:
        assert maxminddb.open_database(database.path).metadata().record_size == bits
        found = database.prefixes(every)
        assert not database.ipv4_only
        for text, region in {
            "1.0.0.7": ("AU", "OC"),
            "1.0.1.255": ("JP", "AS"),
            "1.0.2.0": UNKNOWN_REGION,
            "2.15.255.255": ("FR", "EU"),
            "2.16.0.0": ("DE", "EU"),
            "2.32.0.0": ("FR", "EU"),
            "8.8.8.8": ("US", "NA"),
            "8.8.8.9": UNKNOWN_REGION,
            "9.1.1.1": (None, "EU"),
            "10.1.1.1": UNKNOWN_REGION,
            "11.1.1.1": ("BR", None),
            "2001:db8::1": ("DE", "EU"),
            "2001:db8:8000::1": ("US", "NA"),
            "2001:db9::": UNKNOWN_REGION,
            "2a00:1::6": ("ZA", "AF"),
            "2a00:1::7": ("CA", "NA"),
            "::ffff:1.0.0.7": ("AU", "OC"),
            "::1.0.0.7": UNKNOWN_REGION,
        }.items():
            assert database.find(ip_address(text)) == region, text
            assert Trie(found).find(ip_address(text)) == region, text
    listed = prefixes(found)
    assert listed["1.0.0.0/24"] == ("AU", "OC")
    assert listed["8.8.8.8/32"] == ("US", "NA")
    assert listed["2001:db8::/33"] == ("DE", "EU")
    assert found.length.dtype == "u4" and found.number.dtype == "u4"
    assert found.address.shape == (len(found.length), 16) and found.address.dtype == "u1"
    assert sorted(set(found.number.tolist())) == list(range(1, len(found.regions) + 1))


def test_only_what_is_wanted_costs(tmp_path: Path) -> None:
    with Database(write(tmp_path / "x.mmdb", ENTRIES)) as database:
        assert prefixes(database.prefixes(lambda country, _: country == "US")) == {
            "8.8.8.8/32": ("US", "NA"),
            "2001:db8:8000::/33": ("US", "NA"),
        }
        europe = database.prefixes(lambda _, continent: continent == "EU")
        assert set(europe.regions) == {("FR", "EU"), ("DE", "EU"), (None, "EU")}
        nothing = database.prefixes(lambda *_: False)
        assert (len(nothing.length), nothing.address.shape, nothing.regions) == (0, (0, 16), [])


def test_neighbours_of_one_region_are_one_prefix(tmp_path: Path) -> None:
    """A city database has several prefixes for each town."""
    entries = [(f"5.5.{n}.0/24", city("DE", f"Town {n}")) for n in range(256)]
    entries += [(f"2a01:{n:x}::/32", city("FR", f"Ville {n}")) for n in range(0x100, 0x200)]
    path = write(tmp_path / "x.mmdb", entries, kind="GeoLite2-City")
    with Database(path) as database:
        assert prefixes(database.prefixes(every)) == {
            "5.5.0.0/16": ("DE", "EU"),
            "2a01:100::/24": ("FR", "EU"),
        }


@pytest.mark.parametrize("bits", [24, 28, 32])
def test_a_file_without_ipv6(tmp_path: Path, record_size: Callable[[int], None], bits: int) -> None:
    record_size(bits)
    path = write(tmp_path / "x.mmdb", ENTRIES[:8], version=4)
    with Database(path) as database:
        assert database.ipv4_only
        assert database.find(ip_address("2.16.0.1")) == ("DE", "EU")
        assert database.find(ip_address("::ffff:2.16.0.1")) == ("DE", "EU")
        assert database.find(ip_address("2001:db8::1")) == UNKNOWN_REGION
        found = prefixes(database.prefixes(every))
    assert found["1.0.0.0/24"] == ("AU", "OC")
    assert all(":" not in prefix for prefix in found)


def test_aliases_of_the_ipv4_tree_are_no_regions(tmp_path: Path) -> None:
    """MaxMind's files point 6to4, Teredo and mapped addresses at the IPv4 tree."""
    writer = MMDBWriter(6, "GeoLite2-Country", ipv4_compatible=True)
    for prefix, record in ENTRIES:
        if prefix != "2001:db8::/32":
            insert(writer, ip_network(prefix), SearchTreeLeaf(record))
    top = writer.tree
    for _ in range(96):
        top = top.left
    for alias in ("::ffff:0:0/96", "2002::/16", "2001::/32"):
        insert(writer, ip_network(alias), top)
    writer.to_db_file(str(tmp_path / "x.mmdb"))
    reader = maxminddb.open_database(tmp_path / "x.mmdb")
    with Database(tmp_path / "x.mmdb") as database:
        found = database.prefixes(every)
        for text in ("2002:808:808::1", "2001:0:808:808::1"):
            assert region_of(reader.get(text)) == ("US", "NA")
            assert database.find(ip_address(text)) == Trie(found).find(ip_address(text)) == UNKNOWN_REGION
        for text in ("::ffff:8.8.8.8", "8.8.8.8", "2001:db8:8000::"):
            assert database.find(ip_address(text)) == Trie(found).find(ip_address(text)) == ("US", "NA")
    assert not any(prefix.startswith(("2002:", "2001::", "::")) for prefix in prefixes(found))


@pytest.mark.parametrize("prefix", ["::/8", "::/64", "::8000:0:0/81", "::/95", "::/96", "0.0.0.0/0", "::/1"])
def test_an_ipv6_prefix_over_mapped_addresses_says_nothing_of_ipv4(tmp_path: Path, prefix: str) -> None:
    with Database(write(tmp_path / "x.mmdb", [(prefix, country("FR"))])) as database:
        trie = Trie(database.prefixes(every))
        reader = maxminddb.open_database(tmp_path / "x.mmdb")
        for text in ("0.0.0.0", "1.2.3.4", "255.255.255.255"):
            address = ip_address(text)
            assert trie.find(address) == database.find(address) == region_of(reader.get(address))
        for text in ("::8000:0:1", "0:0:0:1::", "::1:0:0:0", "4000::"):
            address = ip_address(text)
            assert trie.find(address) == database.find(address) == region_of(reader.get(address))


# --- against maxminddb


def _network(version: int, value: int, length: int) -> Network:
    width = 32 if version == 4 else 128
    kind = IPv4Network if version == 4 else IPv6Network
    return kind((value >> (width - length) << (width - length), length))


# Few different leading bits, so that prefixes overlap.
networks = st.one_of(
    st.builds(
        _network,
        st.just(4),
        st.integers(0, 255).map(lambda high: high << 24) | st.integers(0, 2**32 - 1),
        st.integers(1, 32),
    ),
    st.builds(
        _network,
        st.just(6),
        st.integers(0, 255).map(lambda high: 0x2A << 120 | high << 80) | st.integers(2**113, 2**128 - 1),
        st.integers(8, 128),
    ),
)


def near(network: Network) -> list[Address]:
    first, last = int(network.network_address), int(network.broadcast_address)
    top = 2**network.max_prefixlen - 1
    kind = type(network.network_address)
    return [
        kind(value) for value in {first, last, (first + last) // 2, max(first - 1, 0), min(last + 1, top)}
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=st.lists(st.tuples(networks, st.sampled_from([*COUNTRIES, None])), min_size=1, max_size=30),
    more=st.lists(st.ip_addresses(), max_size=10),
    version=st.sampled_from([4, 6]),
    bits=st.sampled_from([24, 28, 32]),
)
def test_a_look_up_is_the_readers(
    tmp_path: Path,
    record_size: Callable[[int], None],
    entries: list[tuple[Network, str | None]],
    more: list[Address],
    version: int,
    bits: int,
) -> None:
    record_size(bits)
    known = [(ip_network("223.0.0.0/24"), "DE")] + [e for e in entries if version == 6 or e[0].version == 4]
    path = write(
        tmp_path / f"{version}.mmdb", [(str(net), country(code)) for net, code in known], version=version
    )
    wanted = {"DE", "FR", "US", None}
    reader = maxminddb.open_database(path)
    with Database(path) as database:
        all_of_them = Trie(database.prefixes(every))
        some = Trie(database.prefixes(lambda country, _: country in wanted))
        for address in [*(address for net, _ in known for address in near(net)), *more]:
            if address.version == 6 and (version == 4 or int(address) < 2**112):
                continue
            region = region_of(reader.get(address))
            assert database.find(address) == region
            assert all_of_them.find(address) == region
            assert some.find(address) == (region if region[0] in wanted else UNKNOWN_REGION)


values = st.recursive(
    st.booleans()
    | st.integers(0, 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.sampled_from(["x" * 29, "y" * 300, "z" * 70_000]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(
        st.tuples(
            st.dictionaries(st.text(max_size=9), values, max_size=4),
            st.sampled_from(list(COUNTRIES)),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_a_record_is_read_as_maxminddb_reads_it(
    tmp_path: Path, records: list[tuple[dict[str, Any], str, bool]]
) -> None:
    entries = []
    for index, (other, code, before) in enumerate(records):
        region = {"country": {**other, "iso_code": code}, "continent": {"code": COUNTRIES[code], **other}}
        region["continent"]["code"] = COUNTRIES[code]
        entries.append((f"9.{index}.0.0/16", {**other, **region} if before else {**region, **other}))
        if not before:
            entries[-1][1].update(region)
    path = write(tmp_path / "x.mmdb", entries)
    reader = maxminddb.open_database(path, maxminddb.MODE_MEMORY)
    with Database(path) as database:
        for index, (_, code, _) in enumerate(records):
            address = ip_address(f"9.{index}.1.1")
            assert database.find(address) == region_of(reader.get(address)) == (code, COUNTRIES[code])


def test_500_000_prefixes(tmp_path: Path) -> None:
    rnd = random.Random(7)
    codes = [f"{a}{b}" for a in "ABCDEFGHIJ" for b in "KLMNOPQRSTUVWXYZABCDEFGHI"]
    leaves = [SearchTreeLeaf(country(code, "EU")) for code in codes]
    writer = MMDBWriter(6, "GeoLite2-Country", ipv4_compatible=True)
    for index in range(350_000):
        insert(writer, IPv4Network(((1 << 24) + (index << 13), 19)), rnd.choice(leaves))
    for index in range(150_000):
        insert(writer, IPv6Network(((0x20010200 << 96) + (index << 88), 40)), rnd.choice(leaves))
    writer.to_db_file(str(tmp_path / "x.mmdb"))
    with Database(tmp_path / "x.mmdb") as database:
        found = database.prefixes(every)
        one = database.prefixes(lambda code, _: code == "AK")
    assert 490_000 < len(found.length) <= 500_000
    assert len(found.regions) == 250
    assert 1500 < len(one.length) < 2500


# --- bad input


def refused(path: Path) -> str:
    with pytest.raises(DatabaseError) as caught, Database(path) as database:
        database.prefixes(every)
    assert caught.value.exit_code == 2
    assert str(path) in caught.value.message
    return str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    assert "there is no such file" in refused(tmp_path / "x.mmdb")
    (tmp_path / "link.mmdb").symlink_to("nowhere")
    assert "there is no such file" in refused(tmp_path / "link.mmdb")


def test_not_a_file(tmp_path: Path) -> None:
    assert "not a file" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in refused(tmp_path / "pipe")


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.mmdb", ENTRIES)

    def denied(*_: object, **__: object) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(trust, "open_file", denied)
    assert "cannot be read: Permission denied" in refused(path)


@pytest.mark.parametrize("content", [b"", b"x", b"# yaml\n" * 100, b"\xab\xcd\xefMaxMind.com"])
def test_no_database(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.mmdb"
    path.write_bytes(content)
    said = refused(path)
    assert "MaxMind DB file" in said and "/proc" not in said


def test_another_kind_of_database(tmp_path: Path) -> None:
    record = {"autonomous_system_number": 64500, "autonomous_system_organization": "Example"}
    path = write(tmp_path / "x.mmdb", [("1.0.0.0/24", record)], kind="GeoLite2-ASN")
    said = refused(path)
    assert "GeoLite2-ASN" in said and "neither country nor continent" in said and "GeoLite2-City" in said


def test_records_of_no_known_shape(tmp_path: Path) -> None:
    strange = [
        "text",
        7,
        ["DE"],
        {"country": "DE"},
        {"country": {"iso_code": 7}},
        {"continent": {"code": ""}},
    ]
    entries = [(f"1.0.{n}.0/24", record) for n, record in enumerate(strange)]
    with Database(write(tmp_path / "x.mmdb", [*entries, ("2.0.0.0/8", country("DE"))])) as database:
        assert prefixes(database.prefixes(every)) == {"2.0.0.0/8": ("DE", "EU")}


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.mmdb", ENTRIES)
    original = os.sendfile

    def sendfile(*arguments: Any) -> int:
        with path.open("ab") as file:
            file.write(b"more")
        os.utime(path, ns=(1, 1))
        monkeypatch.setattr(os, "sendfile", original)
        return original(*arguments)

    monkeypatch.setattr(os, "sendfile", sendfile)
    assert "changed while it was read" in refused(path)


def test_an_open_file_outlives_its_replacement(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mmdb", ENTRIES)
    with Database(path) as database:
        path.write_bytes(b"")
        assert database.find(ip_address("8.8.8.8")) == ("US", "NA")
        assert len(database.prefixes(every).regions) == 9


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_every_descriptor_is_closed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mmdb", ENTRIES)
    (tmp_path / "bad.mmdb").write_bytes(path.read_bytes()[:-100])
    before = open_files()
    for _ in range(20):
        with Database(path) as database:
            database.prefixes(every)
        refused(tmp_path / "bad.mmdb")
    assert open_files() == before


def test_the_digest_tells_files_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mmdb", ENTRIES)

    def digest() -> str:
        with Database(path) as database:
            return database.digest

    first = digest()
    assert digest() == first
    os.utime(path, ns=(5, 5))
    second = digest()
    assert second != first
    write(path, ENTRIES[:-1])
    os.utime(path, ns=(5, 5))
    assert digest() not in (first, second)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), version=st.sampled_from([4, 6]), bits=st.sampled_from([24, 28, 32]))
def test_a_broken_file_is_named(
    tmp_path: Path, record_size: Callable[[int], None], data: st.DataObject, version: int, bits: int
) -> None:
    """Any file has regions or raises DatabaseError."""
    record_size(bits)
    entries = ENTRIES if version == 6 else ENTRIES[:8]
    content = bytearray(write(tmp_path / "x.mmdb", entries, version=version).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    (tmp_path / "y.mmdb").write_bytes(content[:cut])
    try:
        with Database(tmp_path / "y.mmdb") as database:
            database.find(ip_address("2.16.0.1"))
            database.find(ip_address("2001:db8::1"))
            database.prefixes(every)
    except DatabaseError as error:
        assert error.hint or "expected" in error.message


def test_a_tree_that_runs_in_circles(tmp_path: Path, record_size: Callable[[int], None]) -> None:
    record_size(32)
    path = write(tmp_path / "x.mmdb", ENTRIES)
    content = bytearray(path.read_bytes())
    nodes = maxminddb.open_database(path).metadata().node_count
    for node in range(128, nodes):
        for side in (0, 4):
            if int.from_bytes(content[node * 8 + side : node * 8 + side + 4], "big") == nodes:
                content[node * 8 + side : node * 8 + side + 4] = (200).to_bytes(4, "big")
    path.write_bytes(content)
    # Without a check, walking 128 levels of a cyclic tree would not end.
    assert calls(lambda: refused(path)) < 1_000_000
    assert "broken" in refused(path)
