"""Connection strings: where they come from, and that nothing shows them."""

from __future__ import annotations

import copy
import pickle

import pytest

from engine.errors import UsageError
from engine.spec import Dsn, refuse_password
from engine.spec.dsn import holds_password
from engine.spec.misfit import Misfit

CANARY = "s3cr3t-canary"
URL = f"postgresql://app:{CANARY}@db.example/shop"


def test_a_variable_is_resolved_and_remembered_as_a_reference():
    dsn = Dsn.resolve("${SOURCE_DSN}", {"SOURCE_DSN": URL})
    assert dsn.secret() == URL
    assert dsn.reference == "${SOURCE_DSN}"


def test_a_variable_inside_a_longer_text_leaves_no_reference():
    dsn = Dsn.resolve("postgresql://app:${PW}@db/shop", {"PW": CANARY})
    assert dsn.secret() == f"postgresql://app:{CANARY}@db/shop"
    assert dsn.reference is None


def test_nothing_but_secret_shows_the_text():
    dsn = Dsn.resolve("postgresql://app:${PW}@db/shop", {"PW": CANARY})
    assert CANARY not in f"{dsn} {dsn!r} {[dsn]}"
    assert not hasattr(dsn, "__dict__")
    with pytest.raises(TypeError):
        pickle.dumps(dsn)
    assert copy.deepcopy(dsn) == dsn == copy.copy(dsn)


@pytest.mark.parametrize("env", [{}, {"SOURCE_DSN": ""}])
def test_an_unset_or_empty_variable_is_named(env):
    with pytest.raises(Misfit, match="SOURCE_DSN"):
        Dsn.resolve("${SOURCE_DSN}", env)


@pytest.mark.parametrize("text", ["${", "${a-b}", "${}", "host=${A B}"])
def test_a_malformed_variable_is_refused(text):
    with pytest.raises(Misfit, match="variable"):
        Dsn.resolve(text, {})


@pytest.mark.parametrize("text", ["", "  ", "shop", "mysql://db/shop", "http://db", "host=a\0", "a=b\ud800"])
def test_what_is_no_connection_string_is_refused(text):
    with pytest.raises(Misfit):
        Dsn.resolve("${D}", {"D": text})


def test_without_a_dsn_the_environment_decides():
    assert Dsn.from_environment({"BACKFILL_DSN": URL}) == Dsn(URL, reference="${BACKFILL_DSN}")
    assert Dsn.from_environment({"PGHOST": "db"}) == Dsn("")


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://app:{CANARY}@db/shop",
        f"postgres://app:{CANARY}@db:5432,db2:5433/shop",
        f"postgresql://app:a/{CANARY}@db/shop",
        f"postgresql://app:a?{CANARY}@db/shop",
        f"postgresql://app:a#{CANARY}@db/shop",
        f"postgresql://app:a@b{CANARY}@db/shop",
        f"postgresql://db/shop?password={CANARY}",
        f"postgresql://db/shop?user=app&pass%77ord={CANARY}",
        f"postgresql://db/shop?sslmode=require&sslpassword={CANARY}",
        f"host=db password={CANARY}",
        f"host=db PASSWORD = '{CANARY} with space'",
        f"host=db,password={CANARY}",
        f"host=db sslpassword={CANARY}",
        f"postgresql://app:{CANARY}${{REST}}@db/shop",
        f"mysql://app:{CANARY}@db/shop",
    ],
)
def test_a_literal_password_is_seen_in_every_disguise(text):
    assert holds_password(text)
    with pytest.raises(UsageError) as caught:
        refuse_password(text, "--source-dsn")
    assert "--source-dsn" in str(caught.value)
    assert "BACKFILL_DSN" in caught.value.hint
    assert CANARY not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://app@db:5432/shop",
        "postgresql://db:5432/shop?application_name=me@here",
        "postgresql://[::1]:5432/shop",
        "postgresql://a:1,b:2/shop",
        "postgresql:///shop?host=/run/postgresql&passfile=/home/me/.pgpass",
        "postgresql://app:${PW}@db/shop",
        "postgresql://app:@db/shop",
        "host=db user=app passfile=/home/me/.pgpass",
        "service=shop",
        "host=db password=${PW}",
        "host=db password=''",
        "${SOURCE_DSN}",
        "",
    ],
)
def test_what_holds_no_password_is_let_through(text):
    assert not holds_password(text)
    refuse_password(text)
