"""The operator's configuration: every mistake at once with its place, secrets out of sight, nothing open by accident."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import SpecError, UsageError
from engine.service.access import Scope
from engine.service.config import Address, Allow, Auth, Config, ConnectionConfig, Limits, Tls, load_config, read_config
from engine.service.tables import TablePattern
from engine.spec import Dsn, SignalKind
from engine.spec.base import SpecModel
from engine.spec.misfit import Misfit
from engine.spec.names import TableRef, quote_where_needed

ROOT = Path(__file__).parents[2]
MAIN = {"main": {"dsn": "host=a dbname=shop"}}
CANARY = "s3cr3t-canary"


def problems(data: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        read_config(data, environment or {})
    assert CANARY not in repr([caught.value, caught.value.problems])
    return {problem.path: f"{problem.message}; {problem.hint}" for problem in caught.value.problems}


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "backfill.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


# -- what is read -----------------------------------------------------------------------------------------------------


def test_the_smallest_configuration_listens_on_a_private_socket_and_lets_submitters_do_nothing(tmp_path):
    config = load_config(written(tmp_path, '[connections.main]\ndsn = "host=a"\n'), {})
    assert [str(address) for address in config.listen] == ["unix:///run/backfill/backfill.sock"]
    main = config.connections["main"]
    assert (main.work, main.tables, main.role, main.max_rows_per_s) == (False, (), None, None)
    assert config.allow == Allow(expressions=False, transforms=(), dual_write=False, show_rows=False)
    assert (config.auth.tokens_file, config.auth.loopback, dict(config.auth.users)) == (None, None, {})


def test_the_example_loads_as_it_stands(tmp_path):
    """``deploy/backfill.toml``: what it names lies in /etc, so those files are put beside it."""
    text = (ROOT / "deploy" / "backfill.toml").read_text()
    (tmp_path / "main.dsn").write_text("postgresql://backfill@db.internal/shop?sslmode=require")
    (tmp_path / "main.dsn").chmod(0o600)
    config = load_config(written(tmp_path, text.replace("/etc/backfill/", f"{tmp_path}/"), 0o644), {})
    assert config.connections["main"].work
    assert config.signals


def test_every_commented_line_of_the_example_is_valid_when_uncommented(tmp_path):
    text = (ROOT / "deploy" / "backfill.toml").read_text()
    uncommented = re.sub(r"^# (?=[a-z_.\"]+ = |\[)", "", text, flags=re.MULTILINE)
    assert uncommented.count("\n# ") < text.count("\n# ")
    uncommented = uncommented.replace('listen = "unix:///run/backfill/backfill.sock"\n', "", 1)  # the list is a choice
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "daemon.crt")
    certificate.private_key_pem.write_to_path(tmp_path / "daemon.key")
    authority.cert_pem.write_to_path(tmp_path / "clients.crt")
    for name in ("main.dsn", "archive.dsn"):
        (tmp_path / name).write_text("host=db.internal dbname=shop")
        (tmp_path / name).chmod(0o600)
    path = written(tmp_path, uncommented.replace("/etc/backfill/", f"{tmp_path}/"))
    config = load_config(path, {"FRENO_KEY": "x"})
    said = {key for table in tables_of(config) for key in table.model_fields_set}
    every = {key for model in MODELS for key in model.model_fields}
    assert every - said == {"dsn", "service", "plaintext"}, "the example shows every key"


def tables_of(config: Config) -> list[SpecModel]:
    tables = [config, *config.connections.values(), config.allow, config.auth, config.limits]
    return [*tables, config.tls] if config.tls is not None else tables


def test_paths_begin_where_the_file_is(tmp_path):
    (tmp_path / "main.dsn").write_text("host=a")
    path = written(tmp_path, '[connections.main]\ndsn_file = "main.dsn"\n[auth]\ntokens_file = "tokens.toml"\n')
    config = load_config(path, {})
    assert config.dsns({}) == {"main": Dsn("host=a")}
    assert config.auth.tokens_file == str(tmp_path / "tokens.toml")


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_every_mistake_comes_at_once_with_its_line_and_what_to_do(tmp_path):
    path = written(
        tmp_path,
        """
listn = "tcp://127.0.0.1:8471"
drain = 25

[connections.main]
dsn = "host=a"
tabels = ["public.*"]
jobs = 0

[connections.Upper]
dsn = "host=a"

[signals.queue]
sql = {query = "select 1"}

[signals.api]
promtheus = {url = "http://p"}

[auth]
loopback = ["reed"]
""",
    )
    with pytest.raises(SpecError) as caught:
        load_config(path, {})
    assert caught.value.file == str(path)
    found = [(problem.line, problem.path) for problem in caught.value.problems]
    assert found == [
        (2, "listn"),
        (3, "drain"),
        (7, "connections.main.tabels"),
        (8, "connections.main.jobs"),
        (10, "connections.Upper"),
        (14, "signals.queue.sql"),
        (16, "signals.api"),
        (20, "auth.loopback"),
    ]
    hints = {problem.path: problem.hint for problem in caught.value.problems}
    assert hints["listn"] == "did you mean listen?"
    assert hints["connections.main.tabels"] == "did you mean tables?"
    assert hints["signals.api"] == "did you mean prometheus?"
    assert all(problem.hint for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("connections", {}, "is empty"),
        ("connections", {"main": {}}, "exactly one of dsn, dsn_file and service"),
        ("connections", {"main": {"dsn": "host=a", "service": "b"}}, "dsn and service"),
        ("connections", {"main": {"dsn": "nonsense"}}, "neither a postgresql"),
        ("connections", {"main": {"dsn": "${NOWHERE}"}}, "NOWHERE"),
        ("connections", {"main": {"dsn": "host=a colour=red"}}, "colour"),
        ("connections", {"main": {"dsn_file": "/nowhere/at/all"}}, "cannot be read"),
        ("connections", {"main": {"dsn_file": "/dev/null/x"}}, "cannot be read"),
        ("connections", {"main": {"dsn_file": "/dev/zero"}}, "is no file"),
        ("connections", {"main": {"service": "a b"}}, "is not a name"),
        ("connections", {"main": {"dsn": "host=a", "sources": ["mian"]}}, "did you mean main?"),
        ("connections", {"main": {"dsn": "host=a", "references": ["${A}"]}}, "without $"),
        ("connections", {"a": {"dsn": "host=a", "references": ["D"]}, "b": {"dsn": "host=b", "references": ["D"]}}, "one database"),
        ("connections", {"main": {"dsn": "host=a", "tables": ["orders"]}}, "schema.table"),
        ("connections", {"main": {"dsn": "host=a", "tables": ["a.b", "a.b"]}}, "twice"),
        ("connections", {"main": {"dsn": "host=a", "max_rows_per_s": 0}}, "more than 0"),
        ("connections", {"main": {"dsn": "host=a", "max_rows_per_s": "fast"}}, "must be a number"),
        ("connections", {"main": {"dsn": "host=a", "work": "yes"}}, "true or false"),
        ("connections", {"main": {"dsn": "host=a", "workers": 65}}, "at most 64"),
        ("connections", {"main": "host=a"}, "must be a mapping"),
        ("listen", "http://localhost", "unix:///"),
        ("listen", "tcp://127.0.0.1:99999", "unix:///"),
        ("listen", "unix:///run/", "unix:///"),
        ("listen", [], "is empty"),
        ("listen", 8471, "must be a list"),
        ("listen", ["unix:///a", "unix:///a"], "twice"),
        ("drain", "25", "is not a duration"),
        ("drain", "2h", "at most 3600"),
        ("allow", {"transforms": ["*"]}, "is no transform"),
        ("allow", {"transforms": ["shop.*:cents"]}, "module.path:function"),
        ("allow", {"transforms": ["shop:*", "shop:*"]}, "twice"),
        ("allow", {"expresions": True}, "did you mean expressions?"),
        ("allow", {"expressions": 1}, "true or false"),
        ("limits", {"body": 5}, "needs a unit"),
        ("limits", {"body": "1GiB"}, "at most"),
        ("signals", {"lock_waits": {"sql": {"query": "select 1", "max": 1}}}, "built-in"),
        ("signals", {"a": {}}, "exactly one"),
        ("signals", {"a": {"sql": {"query": "select 1", "max": 1}, "http": {"url": "http://a"}}}, "exactly one"),
        ("signals", {"a": {"http": {"name": "b", "url": "http://a"}}}, "leave `name` out"),
        ("signals", {"a": {"http": {"url": "ftp://a"}}}, "http"),
        ("signals", {"a": {"http": {"url": f"http://me:{CANARY}@a"}}}, "password"),
        ("signals", {"a": {"http": {"url": "http://a/${KEY}"}}}, "KEY"),
        ("signals", {"a": {"prometheus": {"url": "http://a", "qery": "up", "max": 1}}}, "did you mean query?"),
        ("signals", {"a": {"lock_waits": {}}}, "one of sql, prometheus and http"),
        ("signals", {"a": "http://a"}, "must be a table"),
        ("auth", {"users": {"deploy": "read"}}, "list of scopes"),
        ("auth", {"users": {"deploy": ["write"]}}, "read, control, submit"),
        ("auth", {"certificates": {"argo": ["read"]}}, "client_ca"),
        ("tls", {"certificate": "/nowhere", "key": "/nowhere"}, "nothing listens on TCP"),
        ("nonsense", 1, "known here"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_with_what_to_do(key, value, words):
    found = problems({"connections": MAIN, key: value})
    assert any(path == key or path.startswith((f"{key}.", f"{key}[")) for path in found), found
    assert any(words in said for said in found.values()), found


@pytest.mark.parametrize(
    "text",
    ["x = [", "a = 1\na = 2\n", f"dsn = 'host=a password={CANARY}", "[a]\n[a]\n", "x = " + "[" * 10_000],
    ids=["open", "a key twice", "a password", "a table twice", "deep"],
)
def test_what_is_not_toml_is_refused_without_a_word_of_it(tmp_path, text):
    with pytest.raises(SpecError) as caught:
        load_config(written(tmp_path, text), {})
    assert "is not TOML" in caught.value.problems[0].message
    assert CANARY not in repr(caught.value.problems)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(UsageError):
        load_config(tmp_path / "nowhere.toml", {})
    path = tmp_path / "binary.toml"
    for content in (b"\xff\xfe", b"#" * (2**20 + 1)):
        path.write_bytes(content)
        with pytest.raises(SpecError):
            load_config(path, {})


# -- secrets ----------------------------------------------------------------------------------------------------------


def test_a_password_in_the_file_is_taken_only_if_nobody_else_can_read_it(tmp_path):
    text = f'[connections.main]\ndsn = "postgresql://app:{CANARY}@db/shop"\n'
    with pytest.raises(SpecError) as caught:
        load_config(written(tmp_path, text, 0o644), {})
    assert "chmod 600" in caught.value.problems[0].hint
    config = load_config(written(tmp_path, text, 0o640), {})
    assert CANARY in config.dsns({})["main"].secret()
    shown = [config, str(config), config.model_dump(), config.model_dump_json(), config.dsns({})]
    assert CANARY not in repr(shown)


def test_a_password_by_a_variable_needs_no_such_care(tmp_path):
    path = written(tmp_path, '[connections.main]\ndsn = "postgresql://app:${PW}@db/shop"\n', 0o644)
    dsn = load_config(path, {"PW": CANARY}).dsns({"PW": CANARY})["main"]
    assert dsn == Dsn(f"postgresql://app:{CANARY}@db/shop"), "no reference: the ledger keeps the connection's name"


def test_a_file_with_a_connection_string_is_held_to_the_same(tmp_path):
    secret = tmp_path / "main.dsn"
    secret.write_text(f"host=db password={CANARY}\n")
    data = {"connections": {"main": {"dsn_file": str(secret)}}}
    secret.chmod(0o644)
    assert "chmod 600" in problems(data)["connections.main.dsn_file"]
    secret.chmod(0o602)
    assert "changed by everybody" in problems(data)["connections.main.dsn_file"]
    secret.chmod(0o440)
    assert read_config(data, {}).dsns({})["main"].secret() == f"host=db password={CANARY}"
    secret.chmod(0o644)
    secret.write_text("host=db\n")
    assert read_config(data, {}).dsns({})["main"].secret() == "host=db"


def test_a_variable_in_a_dsn_file_is_not_looked_up(tmp_path):
    secret = tmp_path / "main.dsn"
    secret.write_text("${HOME_OF_SECRETS}")
    found = problems({"connections": {"main": {"dsn_file": str(secret)}}}, {"HOME_OF_SECRETS": "host=a"})
    assert "is not set" in found["connections.main.dsn_file"]


def test_a_configuration_that_everybody_can_change_is_refused(tmp_path):
    with pytest.raises(SpecError, match="1 problem"):
        load_config(written(tmp_path, '[connections.main]\ndsn = "host=a"\n', 0o602), {})


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "is no file" in str(problems({"connections": {"main": {"dsn_file": str(tmp_path / "pipe")}}}))


def test_what_is_secret_in_the_address_of_a_signal_comes_from_the_environment():
    data = {"connections": MAIN, "signals": {"freno": {"http": {"url": "http://freno/check?key=${KEY}"}}}}
    config = read_config(data, {"KEY": CANARY})
    signal = config.signals["freno"]
    assert (signal.kind, signal.url, signal.of_operator) == (
        SignalKind.HTTP, f"http://freno/check?key={CANARY}", True,
    )  # fmt: skip
    assert CANARY not in repr([config, config.signals, config.model_dump(), config.model_dump_json()])


# -- who may come in --------------------------------------------------------------------------------------------------

NETWORK, LOOPBACK = "tcp://0.0.0.0:8471", "tcp://127.0.0.1:8471"


@pytest.fixture
def certificates(tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    paths = {name: str(tmp_path / f"{name}.pem") for name in ("certificate", "key", "client_ca")}
    certificate.cert_chain_pems[0].write_to_path(paths["certificate"])
    certificate.private_key_pem.write_to_path(paths["key"])
    authority.cert_pem.write_to_path(paths["client_ca"])
    return paths


@pytest.mark.parametrize("listen", [NETWORK, LOOPBACK, "tcp://[::1]:1", "tcp://db.internal:1", ["unix:///a", LOOPBACK]])
def test_tcp_without_anything_that_says_who_may_come_in_is_refused(listen):
    assert "tokens_file" in problems({"connections": MAIN, "listen": listen})["listen"]


def test_loopback_is_open_to_this_machine_only_when_the_file_says_so():
    data = {"connections": MAIN, "listen": LOOPBACK, "auth": {"loopback": ["read"]}}
    assert read_config(data, {}).auth.loopback == {Scope.READ}
    assert "listen" in problems(data | {"listen": NETWORK})
    assert "listen" in problems(data | {"listen": [LOOPBACK, NETWORK]})


def test_tokens_do_not_travel_readable_over_a_network_unless_the_file_says_so(certificates):
    data = {"connections": MAIN, "listen": NETWORK, "auth": {"tokens_file": "/tokens.toml"}}
    assert "[tls]" in problems(data)["listen"]
    assert read_config(data | {"auth": {"tokens_file": "/tokens.toml", "plaintext": True}}, {})
    tls = {key: certificates[key] for key in ("certificate", "key")}
    assert read_config(data | {"tls": tls}, {}).tls == Tls(**tls)


def test_certificates_of_clients_let_in_only_with_the_ca_that_signed_them(certificates):
    named = {"connections": MAIN, "listen": NETWORK, "auth": {"certificates": {"argo": ["submit"]}}}
    assert read_config(named | {"tls": certificates}, {})
    assert "listen" in problems(named | {"tls": certificates, "auth": {}})
    without = {key: certificates[key] for key in ("certificate", "key")}
    assert set(problems(named | {"tls": without})) == {"listen", "auth.certificates"}


def test_certificates_that_cannot_be_used_are_refused_before_anything_listens(certificates, tmp_path):
    data = {"connections": MAIN, "listen": LOOPBACK, "auth": {"tokens_file": "/tokens.toml"}}
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("nothing")
    for key, at in (("certificate", "certificate"), ("key", "certificate"), ("client_ca", "client_ca")):
        for path in (str(garbage), "/nowhere.pem"):
            assert set(problems(data | {"tls": certificates | {key: path}})) == {f"tls.{at}"}
    other = trustme.CA().issue_cert("localhost").private_key_pem
    other.write_to_path(str(garbage))
    assert "do not fit" in problems(data | {"tls": certificates | {"key": str(garbage)}})["tls.certificate"]


def test_a_key_with_a_pass_phrase_is_refused_without_asking_for_it(certificates, tmp_path):
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(Path(certificates["key"]).read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(CANARY.encode()),
        )
    )
    data = {"connections": MAIN, "listen": LOOPBACK, "auth": {"tokens_file": "/tokens.toml"}}
    assert set(problems(data | {"tls": certificates | {"key": str(locked)}})) == {"tls.certificate"}


@pytest.mark.parametrize("text", ["unix:///run/a.sock", "tcp://127.0.0.1:0", "tcp://[::1]:8471", "tcp://db.internal:1"])
def test_an_address_is_written_as_it_was_read(text):
    assert str(Address.parse(text)) == text


def test_only_this_machine_reaches_loopback():
    inside = ["unix:///a", "tcp://127.0.0.1:1", "tcp://127.9.9.9:1", "tcp://[::1]:1", "tcp://localhost:1"]
    outside = [
        "tcp://0.0.0.0:1",
        "tcp://[::]:1",
        "tcp://10.0.0.1:1",
        "tcp://localhost.example:1",
        "tcp://127.0.0.1.x:1",
    ]
    assert all(Address.parse(text).is_loopback for text in inside)
    assert not any(Address.parse(text).is_loopback for text in outside)


# -- tables -----------------------------------------------------------------------------------------------------------

ALPHABET = 'ab*A"é.%_\\[0'
PARTS = st.text(ALPHABET, min_size=1, max_size=5)


def plainly(pattern: str, name: str) -> bool:
    """Whether ``*`` can stand for what is between, by trying everything."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(plainly(pattern[1:], name[length:]) for length in range(len(name) + 1))
    return bool(name) and pattern[0] == name[0] and plainly(pattern[1:], name[1:])


@given(PARTS, PARTS, PARTS, PARTS)
def test_a_pattern_means_what_a_plain_reading_of_it_means(schema, name, in_schema, in_name):
    text = f"{schema}.{name}"
    bare = re.compile(r"[A-Za-z_*é][A-Za-z0-9_$*é]*\Z")
    if not (bare.match(schema) and bare.match(name)):
        return
    folded = [part.translate({ord("A"): "a"}) for part in (schema, name)]
    expected = plainly(folded[0], in_schema) and plainly(folded[1], in_name)
    assert TablePattern.parse(text).matches(in_schema, in_name) is expected


@given(PARTS, PARTS, PARTS)
def test_a_quoted_name_means_itself_alone(schema, name, other):
    quoted = TablePattern.parse(".".join('"' + part.replace('"', '""') + '"' for part in (schema, name)))
    assert quoted.matches(schema, name)
    assert quoted.matches(schema, other) is (other == name)


@given(PARTS, PARTS)
def test_a_table_as_a_spec_writes_it_is_a_pattern_for_itself(schema, name):
    text = f"{quote_where_needed(schema)}.{quote_where_needed(name)}"
    ref = TableRef.parse(text)
    assert ref.schema is not None
    assert TablePattern.parse(text).matches(ref.schema, ref.name)


@pytest.mark.parametrize("schema", ["pg_catalog", "pg_toast", "information_schema", "backfill", "pg_temp_3"])
def test_system_schemas_and_the_ledgers_own_are_never_open(schema):
    for text in ("*.*", f"{schema}.*", f'"{schema}".job', f"{schema}.job"):
        assert not TablePattern.parse(text).matches(schema, "job")


@pytest.mark.parametrize(
    "text",
    ["", "*", "a", "a.b.c", ".", "a.", '"".b', '"a.b', "a b.c", "a.b\n;", "1a.b", 5, "a." + "b" * 400],
    ids=lambda text: repr(text)[:20],
)
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(Misfit):
        TablePattern.parse(text)


# -- the documents ----------------------------------------------------------------------------------------------------

MODELS: tuple[type[SpecModel], ...] = (Config, ConnectionConfig, Allow, Auth, Tls, Limits)


def test_every_key_stands_in_the_documentation():
    text = (ROOT / "docs" / "daemon" / "configuration.md").read_text()
    sections = dict(re.findall(r"^## [^\n]*\(`(.*?)`\)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    names = {Config: "backfill.toml", ConnectionConfig: "[connections.NAME]", Allow: "[allow]", Auth: "[auth]", Tls: "[tls]", Limits: "[limits]"}  # fmt: skip
    tables = {"connections", "allow", "signals", "auth", "tls", "limits"}
    for model, name in names.items():
        keys = set(model.model_fields) - (tables if model is Config else set())
        assert set(re.findall(r"^\| `(\w+)` \|", sections[name], re.MULTILINE)) == keys, name


def test_every_default_in_the_documentation_is_the_real_one():
    text = (ROOT / "docs" / "daemon" / "configuration.md").read_text()
    limits = Limits()
    for key, said in (
        ("body", "1MiB"), ("connections", "200"), ("header_timeout", "10s"), ("body_timeout", "20s"),
        ("send_timeout", "20s"), ("idle_timeout", "1m"),
    ):  # fmt: skip
        assert re.search(rf"^\| `{key}` \| {said} \|", text, re.MULTILINE), key
        assert (
            read_config({"connections": MAIN, "limits": {key: int(said) if said.isdigit() else said}}, {}).limits
            == limits
        )
