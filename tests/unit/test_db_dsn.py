"""Connection strings are read as libpq reads them, and never shown."""

from __future__ import annotations

import contextlib
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.db.dsn import Host, Options, read_dsn
from engine.db.tls import mode_for
from engine.errors import UsageError

CANARY = "correct-horse"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def read(text: str, home: Path | None = None, **environment: str) -> Options:
    return read_dsn(text, {"HOME": str(home or "/nonexistent"), **environment})


def test_a_url() -> None:
    options = read("postgresql://u%40x:p%2Fw@db.example:6432/shop%20floor?connect_timeout=3&sslmode=require")
    assert options.hosts == (Host("db.example", 6432),)
    assert (options.user, options.database, options.passwords) == ("u@x", "shop floor", ("p/w",))
    assert options.connect_timeout_s == 3
    assert options.tls.mode == "require"
    assert options.label == "db.example:6432/shop floor"


def test_a_password_may_hold_an_unencoded_at_sign() -> None:
    options = read("postgres://u:p@ss@h/d")
    assert (options.hosts[0].name, options.passwords) == ("h", ("p@ss",))


def test_key_value_pairs_with_quotes_and_escapes() -> None:
    options = read(r"host = db.example port=6432  user='an \'odd\' one' password=a\ b dbname=shop")
    assert (options.user, options.passwords, options.database) == ("an 'odd' one", ("a b",), "shop")


def test_several_hosts_with_ports_of_their_own() -> None:
    expected = (Host("a", 1), Host("::1", 2), Host("c", 5432))
    assert read("postgresql://u@a:1,[::1]:2,c/d").hosts == expected
    assert read("host=a,::1,c port=1,2, user=u").hosts == expected
    assert [host.port for host in read("host=a,b port=7 user=u").hosts] == [7, 7]


def test_a_socket_folder_as_host() -> None:
    for text in ("postgresql://u@%2Frun%2Fpg/d", "postgresql://u@/d?host=/run/pg", "host=/run/pg user=u dbname=d"):
        options = read(text)
        assert options.hosts == (Host("/run/pg", 5432),)
        assert options.hosts[0].is_socket


def test_the_environment_fills_what_is_not_said() -> None:
    options = read(
        "dbname=shop",
        PGHOST="h",
        PGPORT="6000",
        PGUSER="u",
        PGDATABASE="other",
        PGPASSWORD=CANARY,
        PGOPTIONS="-c work_mem=64MB",
        PGCONNECT_TIMEOUT="4",
        PGSSLMODE="require",
        PGSSLROOTCERT="/ca.pem",
        PGTARGETSESSIONATTRS="read-write",
    )
    assert (options.hosts, options.user, options.database) == ((Host("h", 6000),), "u", "shop")
    assert options.passwords == (CANARY,)
    assert options.session_options == "-c work_mem=64MB"
    assert options.connect_timeout_s == 4
    assert (options.tls.mode, options.tls.root_cert) == ("require", "/ca.pem")
    assert options.session_attributes == "read-write"
    assert options.origins["dbname"] == "connection string"
    assert options.origins["host"] == "PGHOST"


def test_a_service_stands_between_the_connection_string_and_the_environment(home: Path) -> None:
    (home / ".pg_service.conf").write_text(
        "# mine\n[main]\nhost=h\nport=1\nuser=u\ndbname=from_service\npassword=a%b\n"
    )
    for options in (
        read("service=main dbname=d", home, PGUSER="env"),
        read("postgresql:///d?service=main", home),
        read("dbname=d", home, PGSERVICE="main"),
    ):
        assert (options.hosts, options.user, options.database) == ((Host("h", 1),), "u", "d")
        assert options.passwords == ("a%b",)
        assert options.origins["user"] == "service main"


def test_an_unknown_service_is_an_error(home: Path) -> None:
    with pytest.raises(UsageError, match="no service 'gone'"):
        read("service=gone", home)


def test_the_password_file_answers_for_each_host(home: Path) -> None:
    file = home / ".pgpass"
    file.write_text("# comment\na:5432:d:u:for a\nb:*:*:u:for\\: b\\\\\n*:*:*:other:wrong\nlocalhost:*:*:*:local\n")
    file.chmod(0o600)
    assert read("host=a,b,c user=u dbname=d", home).passwords == ("for a", "for: b\\", None)
    assert read("host=/tmp user=u dbname=d", home).passwords == ("local",)
    assert read("host=a user=u dbname=d password=said", home).passwords == ("said",)


def test_a_password_file_that_others_can_read_is_not_used(home: Path) -> None:
    file = home / ".pgpass"
    file.write_text("*:*:*:*:open secret\n")
    file.chmod(0o644)
    assert read("host=a user=u", home).passwords == (None,)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("postgresql://u@h/d?sslmod=require", "sslmode"),
        ("host=h usr=x", "user"),
        ("postgresql://h/d?work_mem=1", "known"),
    ],
)
def test_unknown_keys_are_refused(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match="unknown") as caught:
        read(text)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "mysql://u@h/d",
        "just words",
        "host='open",
        "postgresql://u@[::1/d",
        "postgresql://u@h:port/d",
        "host=a,b port=1,2,3",
        "host=h port=0",
        "host=h sslmode=full",
        "host=h connect_timeout=soon",
        "host=h hostaddr=1.2.3.4",
        "host=h gssencmode=require",
        "host=h target_session_attrs=best",
        "host=h\0",
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read(text)


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://u:{CANARY}@h/d?nope=1",
        f"postgresql://u:12/{CANARY}@h/d",
        f"postgresql://u:a?{CANARY}=1@h/d",
        f"postgresql://u:{CANARY}@h:x/d",
        f"password=a {CANARY}=b host=h",
        f"password=a {CANARY}",
        f"password='{CANARY}",
        f"host=h password={CANARY} sslmode={CANARY}",
    ],
)
def test_no_error_shows_a_piece_of_the_connection_string(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)
    assert CANARY not in f"{caught.value!r} {caught.value.hint}"


def test_no_representation_shows_the_password() -> None:
    options = read(f"postgresql://u:{CANARY}@h/d?sslpassword={CANARY}")
    assert CANARY not in repr(options)
    assert CANARY not in options.label


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("host=db.example user=u", "verify-full"),
        ("host=10.0.0.1 user=u", "verify-full"),
        ("host=localhost user=u", "allow"),
        ("host=127.0.0.1 user=u", "allow"),
        ("host=/tmp user=u sslmode=verify-full", "disable"),
        ("host=localhost user=u sslmode=verify-full", "verify-full"),
        ("host=db.example user=u sslmode=disable", "disable"),
    ],
)
def test_other_machines_are_verified_unless_the_user_says_otherwise(text: str, mode: str) -> None:
    options = read(text)
    assert mode_for(options.hosts[0], options.tls) == mode


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for form in (text, f"postgresql://{text}", f"host=h user=u password={text}"):
        with contextlib.suppress(UsageError):
            read(form)


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_every_password_survives_both_forms(password: str) -> None:
    escaped = password.replace("\\", "\\\\").replace("'", "\\'")
    assert read(f"host=h user=u password='{escaped}'").passwords == (password,)
    assert read(f"postgresql://u:{quote(password, safe='')}@h").passwords == (password,)
