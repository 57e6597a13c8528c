"""The situations that preflight should notice, one or more for each code (see ``tests.support.findings``)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from engine.model import ConflictPolicy, Deletes
from engine.plan.preflight import Code
from engine.spec import Bloat, ChunkLimits, OnConflict, Pace, SignalKind, SignalSpec, TimeWindow
from engine.spec.signals import ALL_OFF
from tests.support.findings import Job, Situation, copy, fill, move, pretend

PARTED = """
DROP TABLE orders;
CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric, cents bigint, note text) PARTITION BY RANGE (id);
CREATE TABLE orders_1 PARTITION OF orders FOR VALUES FROM (0) TO (1000);
INSERT INTO orders SELECT g, g FROM generate_series(1, 100) g;
"""
WHOLE = "DROP TABLE orders; CREATE TABLE orders (LIKE orders_v2 INCLUDING ALL)"
OPEN = """
GRANT USAGE ON SCHEMA :schema TO :plain; GRANT ALL ON ALL TABLES IN SCHEMA :schema TO :plain;
GRANT CREATE ON DATABASE :database TO :plain;
"""
SHUT = "REVOKE CREATE ON DATABASE :database FROM :plain"
PLAIN_FILL = Job(user=":plain")


def kept(policy: ConflictPolicy, column: str | None = None) -> OnConflict:
    """What ``on_conflict`` says."""
    return OnConflict(policy=policy, column=column)


def watching(*signals: SignalSpec, **pace: Any) -> Pace:
    """A pace with these signals."""
    return Pace(signals=signals, **pace)


def later(hours: int) -> TimeWindow:
    """An hour of the day that begins so many hours from now."""
    opens = datetime.now(UTC) + timedelta(hours=hours)
    return TimeWindow.parse(f"{opens:%H:00}-{opens + timedelta(hours=1):%H:30} UTC")


SITUATIONS = {
    # The key
    "no key": Situation(
        code=Code.NO_KEY,
        sql="ALTER TABLE orders DROP CONSTRAINT orders_pkey",
        words=(":schema.orders",),
        mend="ALTER TABLE orders ADD PRIMARY KEY (id)",
    ),
    "a key that may be null": Situation(
        code=Code.KEY_NULLABLE,
        sql="ALTER TABLE orders DROP CONSTRAINT orders_pkey; ALTER TABLE orders ALTER id DROP NOT NULL;"
        "CREATE UNIQUE INDEX only_one ON orders (id)",
        words=("only_one", "id"),
        mend="ALTER TABLE orders ALTER id SET NOT NULL",
    ),
    "a named key that repeats": Situation(
        code=Code.KEY_NOT_UNIQUE, job=fill(key=("amount",)), words=("(amount)",), mended=fill(key=("id",))
    ),
    "a deferrable key": Situation(
        code=Code.KEY_INDEX_UNUSABLE,
        sql="ALTER TABLE orders DROP CONSTRAINT orders_pkey, ADD CONSTRAINT late PRIMARY KEY (id) DEFERRABLE",
        words=("late", "deferrable"),
        mend="ALTER TABLE orders DROP CONSTRAINT late, ADD PRIMARY KEY (id)",
    ),
    "a computed key": Situation(
        code=Code.KEY_NOT_MAPPED,
        job=move(columns={"id": "id + 1", "amount": "amount"}),
        words=("key column id", "orders_v2"),
        mended=move(columns={"id": "id", "amount": "amount"}),
    ),
    "a key that is rounded": Situation(
        code=Code.KEY_CHANGES_VALUE,
        sql="ALTER TABLE orders_v2 ALTER id TYPE numeric(12, 2)",
        job=move(),
        words=("numeric(12,2)",),
        mend="ALTER TABLE orders_v2 ALTER id TYPE bigint",
    ),
    "a key of addresses": Situation(
        code=Code.KEY_TYPE_OPAQUE,
        sql="ALTER TABLE orders ALTER id TYPE inet USING '10.0.0.0'::inet + id",
        words=("id (inet)",),
        mend="ALTER TABLE orders ALTER id TYPE bigint USING id - '10.0.0.0'::inet",
    ),
    "a key of words": Situation(
        code=Code.KEY_UPDATABLE,
        sql="ALTER TABLE orders ALTER id TYPE text",
        words=("key (id)",),
        mend="ALTER TABLE orders ALTER id TYPE bigint USING id::bigint",
    ),
    "an index of another collation's version": Situation(
        code=Code.COLLATION_OUTDATED,
        sql="CREATE COLLATION aged (provider = builtin, locale = 'C.UTF-8');"
        "ALTER TABLE orders ALTER id TYPE text COLLATE aged;"
        "UPDATE pg_collation SET collversion = '0' WHERE collname = 'aged' AND collnamespace = ':schema'::regnamespace",
        words=("orders_pkey", "of id "),
        mend="ALTER COLLATION aged REFRESH VERSION",
        major=18,
    ),
    # The tables
    "a view": Situation(
        code=Code.TABLE_KIND,
        sql="CREATE VIEW shown AS SELECT * FROM orders",
        job=Job(source="shown"),
        words=(":schema.shown is a view",),
        mended=fill(),
    ),
    "a partition that is elsewhere": Situation(
        code=Code.TABLE_KIND,
        sql="CREATE FOREIGN DATA WRAPPER :schema; CREATE SERVER :schema FOREIGN DATA WRAPPER :schema;"
        "CREATE TABLE parts (id bigint NOT NULL, amount numeric, cents bigint) PARTITION BY RANGE (id);"
        "CREATE FOREIGN TABLE far PARTITION OF parts FOR VALUES FROM (0) TO (9) SERVER :schema",
        job=Job(source="parts"),
        words=("far",),
        mend="DROP FOREIGN TABLE far",
        after="DROP FOREIGN DATA WRAPPER :schema CASCADE",
    ),
    "an unlogged target": Situation(
        code=Code.UNLOGGED_TARGET,
        sql="ALTER TABLE orders_v2 SET UNLOGGED",
        job=move(),
        words=("orders_v2",),
        mend="ALTER TABLE orders_v2 SET LOGGED",
    ),
    "no target": Situation(
        code=Code.TARGET_MISSING,
        sql="ALTER TABLE orders_v2 RENAME TO other",
        job=move(),
        words=(":schema.orders_v2",),
        mend="ALTER TABLE other RENAME TO orders_v2",
    ),
    "one table for both": Situation(
        code=Code.TARGET_IS_SOURCE, job=Job(target="orders"), words=(":schema.orders",), mended=move()
    ),
    "a target with rows": Situation(
        code=Code.TARGET_HAS_ROWS,
        sql="INSERT INTO orders_v2 VALUES (1, 1)",
        job=move(),
        words=("orders_v2", "keep"),
        mend="TRUNCATE orders_v2",
    ),
    "a target without a key": Situation(
        code=Code.NO_ARBITER,
        sql="ALTER TABLE orders_v2 DROP CONSTRAINT orders_v2_pkey",
        job=move(),
        words=("orders_v2", "(id)"),
        mend="ALTER TABLE orders_v2 ADD PRIMARY KEY (id)",
    ),
    "a key without overlaps": Situation(
        code=Code.NO_ARBITER,
        sql="ALTER TABLE orders DROP CONSTRAINT orders_pkey, ADD a int4range DEFAULT '[1,2)', ADD b int8range;"
        "UPDATE orders SET b = int8range(id, id + 1); ALTER TABLE orders ADD PRIMARY KEY (a, b);"
        "ALTER TABLE orders_v2 DROP CONSTRAINT orders_v2_pkey, ADD a int4range, ADD b int8range,"
        " ADD CONSTRAINT temporal PRIMARY KEY (a, b WITHOUT OVERLAPS)",
        job=move(),
        words=("orders_v2", "(a, b)"),
        mend="ALTER TABLE orders_v2 ADD UNIQUE (a, b)",
        major=18,
    ),
    "a target that is unique twice": Situation(
        code=Code.SEVERAL_UNIQUE,
        sql="CREATE UNIQUE INDEX by_amount ON orders_v2 (amount)",
        job=move(),
        words=("by_amount",),
        mend="DROP INDEX by_amount",
    ),
    "a trigger in place": Situation(
        code=Code.TRIGGERS_ON_SOURCE,
        sql="CREATE TRIGGER audit BEFORE UPDATE OF cents ON orders FOR EACH ROW EXECUTE FUNCTION pass()",
        words=("audit", ":schema.orders"),
        mend="DROP TRIGGER audit ON orders;"
        "CREATE TRIGGER audit BEFORE UPDATE OF note ON orders FOR EACH ROW EXECUTE FUNCTION pass()",
    ),
    "a trigger of the target": Situation(
        code=Code.TRIGGERS_ON_TARGET,
        sql="CREATE TRIGGER audit AFTER DELETE ON orders_v2 FOR EACH ROW EXECUTE FUNCTION pass()",
        job=move(),
        words=("audit",),
        mend="ALTER TABLE orders_v2 DISABLE TRIGGER audit",
    ),
    "a foreign key of the target": Situation(
        code=Code.FOREIGN_KEYS,
        sql="CREATE TABLE notes (id text PRIMARY KEY);"
        "ALTER TABLE orders_v2 ADD CONSTRAINT of_note FOREIGN KEY (note) REFERENCES notes",
        job=move(),
        words=("of_note to :schema.notes",),
        mend="ALTER TABLE orders_v2 DROP CONSTRAINT of_note",
    ),
    "a foreign key to the target that no index serves": Situation(
        code=Code.FOREIGN_KEYS_UNINDEXED,
        sql="CREATE TABLE lines (a int, order_id bigint CONSTRAINT of_order REFERENCES orders_v2);"
        "CREATE INDEX of_some ON lines (order_id) WHERE a > 0",
        job=move(),
        words=("of_order from :schema.lines",),
        mend='CREATE INDEX of_all ON lines (order_id, a) WHERE "order_id" IS NOT NULL',
    ),
    "a foreign key of the target that no index serves": Situation(
        code=Code.FOREIGN_KEYS_UNINDEXED,
        sql="CREATE TABLE notes (id text PRIMARY KEY);"
        "ALTER TABLE orders_v2 ADD CONSTRAINT of_note FOREIGN KEY (note) REFERENCES notes",
        job=move(),
        words=("of_note (note) to :schema.notes",),
        mend="CREATE INDEX by_note ON orders_v2 USING hash (note)",
    ),
    "an exclusion constraint": Situation(
        code=Code.EXCLUSION_CONSTRAINTS,
        sql="ALTER TABLE orders_v2 ADD CONSTRAINT no_overlap EXCLUDE USING gist (int8range(id, id, '[]') WITH &&)",
        job=move(),
        words=("no_overlap",),
        mend="ALTER TABLE orders_v2 DROP CONSTRAINT no_overlap",
    ),
    "a check that old rows break": Situation(
        code=Code.CONSTRAINTS_NOT_VALID,
        sql="ALTER TABLE orders ADD CONSTRAINT filled CHECK (cents IS NOT NULL) NOT VALID,"
        " ADD CONSTRAINT dear CHECK (amount > 0) NOT VALID",
        words=("(dear)",),
        mend="ALTER TABLE orders VALIDATE CONSTRAINT dear",
    ),
    "a NOT NULL that old rows break": Situation(
        code=Code.CONSTRAINTS_NOT_VALID,
        sql="ALTER TABLE orders ADD CONSTRAINT noted NOT NULL note NOT VALID,"
        " ADD CONSTRAINT dear CHECK (amount > 1000) NOT ENFORCED",
        words=("(noted)",),
        mend="ALTER TABLE orders DROP CONSTRAINT noted",
        major=18,
    ),
    "a rule": Situation(
        code=Code.RULES,
        sql="CREATE RULE quiet AS ON DELETE TO orders_v2 DO ALSO NOTHING",
        job=move(),
        words=("quiet",),
        mend="DROP RULE quiet ON orders_v2",
    ),
    "hidden rows": Situation(
        code=Code.ROW_SECURITY,
        sql=f"{OPEN} ALTER TABLE orders ENABLE ROW LEVEL SECURITY",
        job=PLAIN_FILL,
        words=(":schema.orders",),
        mend="ALTER TABLE orders DISABLE ROW LEVEL SECURITY",
        after=SHUT,
    ),
    "a table with heirs": Situation(
        code=Code.INHERITANCE,
        sql="CREATE TABLE heir () INHERITS (orders)",
        words=(":schema.orders", "(1)"),
        mend="DROP TABLE heir",
    ),
    "row movement": Situation(code=Code.PARTITION_ROW_MOVEMENT, sql=PARTED, words=("1 partitions",), mend=WHOLE),
    "partitions come and go": Situation(
        code=Code.PARTITIONS_UNHEARD, sql=PARTED, job=move(), words=("1 partitions", "truncated"), mend=WHOLE
    ),
    "rows without a partition": Situation(
        code=Code.NO_DEFAULT_PARTITION,
        sql="DROP TABLE orders_v2; CREATE TABLE orders_v2 (LIKE orders INCLUDING ALL) PARTITION BY RANGE (id);"
        "CREATE TABLE low PARTITION OF orders_v2 FOR VALUES FROM (0) TO (50)",
        job=move(),
        words=("orders_v2", "by range"),
        mend="CREATE TABLE rest PARTITION OF orders_v2 DEFAULT",
    ),
    "a published target": Situation(
        code=Code.PUBLISHED,
        sql="CREATE PUBLICATION :schema FOR TABLE orders_v2",
        job=move(),
        words=("(:schema)", "about 100"),
        mend="ALTER PUBLICATION :schema DROP TABLE orders_v2",
        after="DROP PUBLICATION :schema",
    ),
    "a partition of a published schema": Situation(
        code=Code.PUBLISHED,
        sql=f"{PARTED} CREATE PUBLICATION :schema FOR TABLES IN SCHEMA :schema",
        words=("(:schema)",),
        mend="ALTER PUBLICATION :schema SET (publish = 'insert, delete')",
        after="DROP PUBLICATION :schema",
    ),
    "no replica identity": Situation(
        code=Code.REPLICA_IDENTITY,
        sql="ALTER TABLE orders REPLICA IDENTITY NOTHING; CREATE PUBLICATION :schema FOR TABLE orders",
        words=("orders has no replica identity", ":schema publishes"),
        mend="ALTER TABLE orders REPLICA IDENTITY DEFAULT",
        after="DROP PUBLICATION :schema",
    ),
    "a target that is replicated to": Situation(
        code=Code.SUBSCRIBED,
        sql="CREATE SUBSCRIPTION :schema CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false);"
        "INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate)"
        " SELECT oid, 'orders_v2'::regclass, 'i' FROM pg_subscription WHERE subname = ':schema'",
        job=move(),
        words=("(:schema)",),
        mend="DELETE FROM pg_subscription_rel WHERE srrelid = 'orders_v2'::regclass",
        after="ALTER SUBSCRIPTION :schema SET (slot_name = NONE); DROP SUBSCRIPTION :schema",
    ),
    # The columns
    "a column that is not there": Situation(
        code=Code.COLUMN_MISSING, job=Job(sets={"centz": "1"}), words=("centz", "mean cents?"), mended=fill()
    ),
    "a column that must be filled": Situation(
        code=Code.COLUMN_UNFILLED,
        sql="ALTER TABLE orders_v2 ADD region text NOT NULL",
        job=move(),
        words=("region",),
        mend="ALTER TABLE orders_v2 ALTER region SET DEFAULT 'x'",
    ),
    "a column that stays empty": Situation(
        code=Code.COLUMNS_DEFAULTED,
        sql="ALTER TABLE orders_v2 ADD region text",
        job=move(),
        words=("region (NULL)",),
        mend="ALTER TABLE orders_v2 DROP region",
    ),
    "a column that stays behind": Situation(
        code=Code.COLUMNS_LEFT_BEHIND,
        sql="ALTER TABLE orders_v2 DROP note",
        job=move(),
        words=("note",),
        mend="ALTER TABLE orders_v2 ADD note text",
    ),
    "set writes the key": Situation(
        code=Code.SET_KEY_COLUMN, job=Job(sets={"id": "id"}), words=("writes id",), mended=fill()
    ),
    "set writes what is computed": Situation(
        code=Code.SET_GENERATED,
        sql="ALTER TABLE orders DROP cents, ADD cents bigint GENERATED ALWAYS AS (id * 2) STORED",
        words=("cents",),
        mend="ALTER TABLE orders ALTER cents DROP EXPRESSION",
    ),
    "a narrower column": Situation(
        code=Code.TYPE_NARROWS,
        sql="ALTER TABLE orders_v2 ALTER amount TYPE integer",
        job=move(),
        words=("amount (numeric)", "(integer)"),
        mend="ALTER TABLE orders_v2 ALTER amount TYPE numeric",
    ),
    "a target that numbers by itself": Situation(
        code=Code.IDENTITY_ALWAYS,
        sql="ALTER TABLE orders_v2 ALTER id ADD GENERATED ALWAYS AS IDENTITY",
        job=move(),
        words=("id of :schema.orders_v2",),
        mend="ALTER TABLE orders_v2 ALTER id SET GENERATED BY DEFAULT",
    ),
    "a sequence that does not learn": Situation(
        code=Code.SEQUENCE_BEHIND,
        sql="ALTER TABLE orders_v2 ALTER id ADD GENERATED BY DEFAULT AS IDENTITY",
        job=move(),
        words=("id of :schema.orders_v2", "setval"),
        mend="ALTER TABLE orders_v2 ALTER id DROP IDENTITY",
    ),
    "newest by nothing": Situation(
        code=Code.NEWEST_COLUMN,
        job=move(on_conflict=kept(ConflictPolicy.NEWEST, "updated")),
        words=("newest(updated)",),
        mended=move(on_conflict=kept(ConflictPolicy.NEWEST, "amount")),
    ),
    "newest by what may be null": Situation(
        code=Code.NEWEST_NULLABLE,
        job=move(on_conflict=kept(ConflictPolicy.NEWEST, "cents")),
        words=("newest(cents)",),
        mended=move(on_conflict=kept(ConflictPolicy.NEWEST, "amount")),
    ),
    # The expressions
    "an expression with a slip": Situation(
        code=Code.EXPRESSION_INVALID, job=Job(sets={"cents": "amuont * 100"}), words=("amuont",), mended=fill()
    ),
    "an expression of another type": Situation(
        code=Code.EXPRESSION_TYPE,
        job=Job(sets={"cents": "amount * 100"}),
        words=("set.cents", "numeric", "bigint"),
        mended=fill(),
    ),
    "an expression of several rows": Situation(
        code=Code.EXPRESSION_NOT_SCALAR,
        job=Job(sets={"cents": "generate_series(1, id)"}),
        words=("generate_series()",),
        mended=fill(),
    ),
    "a column by chance": Situation(
        code=Code.EXPRESSION_VOLATILE,
        job=move(columns={"id": "id", "amount": "random()"}),
        words=("random()",),
        mended=move(columns={"id": "id", "amount": "abs(amount)"}),
    ),
    "a column of the day": Situation(
        code=Code.EXPRESSION_VOLATILE,
        job=move(columns={"id": "id", "amount": "1", "note": "current_date"}),
        words=("current_date",),
        mended=move(columns={"id": "id", "amount": "1", "note": "note"}),
    ),
    "rows by chance": Situation(
        code=Code.PREDICATE_VOLATILE,
        job=fill(where="random() < 0.5"),
        words=("random()",),
        mended=fill(where="amount < 50"),
    ),
    "a counter": Situation(
        code=Code.DONE_REQUIRED,
        job=Job(sets={"cents": "cents + 1"}),
        words=("set.cents reads cents",),
        mended=Job(sets={"cents": "cents + 1"}, settings={"done": "note IS NOT NULL"}),
    ),
    "a done that is no condition": Situation(
        code=Code.DONE_INVALID, job=fill(done="amount"), words=("done",), mended=fill(done="amount > 0")
    ),
    "a default that is there already": Situation(
        code=Code.DONE_SKIPS_DEFAULTS,
        sql="ALTER TABLE orders ALTER cents SET DEFAULT 0",
        words=("cents",),
        mend="ALTER TABLE orders ALTER cents DROP DEFAULT",
    ),
    # The application
    "nobody fills new rows": Situation(
        code=Code.DUAL_WRITE_MISSING,
        words=("cents", "backfill dualwrite FILE --install"),
        mend="CREATE TRIGGER cents BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION pass()",
    ),
    "nobody carries deletes over": Situation(
        code=Code.DUAL_WRITE_MISSING,
        sql="CREATE TRIGGER mirror AFTER INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION pass()",
        job=move(),
        words=("hears DELETE:",),
        mend="CREATE TRIGGER bury AFTER DELETE ON orders FOR EACH ROW EXECUTE FUNCTION pass()",
    ),
    "a copy that wins": Situation(
        code=Code.OVERWRITES_DUAL_WRITE,
        job=move(on_conflict=kept(ConflictPolicy.REPLACE)),
        words=(":schema.orders_v2",),
        mended=move(on_conflict=kept(ConflictPolicy.KEEP)),
    ),
    "a promise that nobody deletes": Situation(
        code=Code.DELETES_UNGUARDED, job=move(deletes=Deletes.NONE), words=(":schema.orders",), mended=move()
    ),
    # The servers
    "a role that may not update": Situation(
        code=Code.PRIVILEGES,
        sql=f"{OPEN} REVOKE UPDATE ON orders FROM :plain",
        job=PLAIN_FILL,
        words=("role :plain lacks UPDATE on :schema.orders",),
        mend="GRANT UPDATE ON orders TO :plain",
        after=SHUT,
    ),
    "a role that may not use the schema": Situation(
        code=Code.PRIVILEGES,
        sql=f"{OPEN} REVOKE USAGE ON SCHEMA :schema FROM :plain",
        job=PLAIN_FILL,
        words=("role :plain lacks USAGE on the schema of :schema.orders",),
        mend="GRANT USAGE ON SCHEMA :schema TO :plain",
        after=SHUT,
    ),
    "a role that may not ask the sequence of a default": Situation(
        code=Code.PRIVILEGES,
        sql=f"ALTER TABLE orders_v2 ADD no bigserial; {OPEN}",
        job=Job(target="orders_v2", user=":plain"),
        words=("role :plain lacks USAGE on sequence :schema.orders_v2_no_seq",),
        mend="GRANT USAGE ON SEQUENCE orders_v2_no_seq TO :plain",
        after=SHUT,
    ),
    "a role that may not make the ledger": Situation(
        code=Code.PRIVILEGES,
        sql=f"{OPEN} {SHUT}",
        job=PLAIN_FILL,
        words=("role :plain lacks CREATE on database :database",),
        mend="GRANT CREATE ON DATABASE :database TO :plain",
        after=SHUT,
    ),
    "a superuser": Situation(code=Code.SUPERUSER, words=("postgres",), mended=PLAIN_FILL),
    "a role with few connections": Situation(
        code=Code.CONNECTIONS_SHORT,
        sql="ALTER ROLE :plain CONNECTION LIMIT 5",
        job=PLAIN_FILL,
        words=("11 sessions", "5 are left", "role :plain's limit (5)"),
        mend="ALTER ROLE :plain CONNECTION LIMIT 12",
        after="ALTER ROLE :plain CONNECTION LIMIT -1",
    ),
    # What it will cost
    "a table without statistics": Situation(
        code=Code.STATISTICS_MISSING,
        sql="UPDATE pg_class SET reltuples = -1 WHERE oid = 'orders'::regclass",
        words=("ANALYZE :schema.orders",),
        mend="ANALYZE orders",
    ),
    "a child that no index serves": Situation(
        code=Code.PLAN_SCANS_TABLE,
        sql=f"CREATE TABLE heir () INHERITS (orders); {pretend(1e6)}",
        words=("Seq Scan", ":schema.orders"),
        mend="CREATE UNIQUE INDEX ON heir (id)",
    ),
    "a planner that would rather scan": Situation(
        code=Code.PLAN_FORCED,
        sql=f"{OPEN} {pretend(1e6)} ALTER ROLE :plain IN DATABASE :database SET random_page_cost = 1e9",
        job=PLAIN_FILL,
        words=("orders_pkey",),
        mend="ALTER ROLE :plain IN DATABASE :database SET random_page_cost = 1",
        after=f"ALTER ROLE :plain IN DATABASE :database RESET random_page_cost; {SHUT}",
    ),
    "keys in another order": Situation(
        code=Code.COLLATIONS_DIFFER,
        sql='ALTER TABLE orders ALTER id TYPE text; ALTER TABLE orders_v2 ALTER id TYPE text COLLATE "C.utf8"',
        job=move(),
        words=("C.utf8",),
        mend="ALTER TABLE orders_v2 ALTER id TYPE text",
    ),
    "a type with numbers of its database": Situation(
        code=Code.BINARY_COPY_IMPOSSIBLE,
        sql="CREATE TYPE mood AS ENUM ('good'); ALTER TABLE orders ALTER note TYPE mood[] USING NULL",
        there="CREATE TYPE mood AS ENUM ('good'); ALTER TABLE orders_v2 ALTER note TYPE mood[] USING NULL",
        job=copy(),
        words=("note of :schema.orders_v2",),
        mended=copy(columns={"id": "id", "amount": "amount"}),
    ),
    "an index on what is written": Situation(
        code=Code.HOT_UPDATES,
        sql="CREATE INDEX rounded ON orders ((cents / 100)) INCLUDE (note)",
        words=("rounded", "2 indexes"),
        mend="DROP INDEX rounded; CREATE INDEX summary ON orders USING brin (cents)",
    ),
    "full pages": Situation(
        code=Code.FILLFACTOR,
        job=Job(schema="big"),
        words=("big.orders", "100"),
        mend="ALTER TABLE big.orders SET (fillfactor = 50)",
        after="ALTER TABLE big.orders RESET (fillfactor)",
    ),
    "a table that will grow": Situation(
        code=Code.GROWTH, job=Job(schema="big"), words=("big.orders", "66 MiB"), mended=fill()
    ),
    "nobody vacuums": Situation(
        code=Code.AUTOVACUUM_OFF,
        sql="ALTER TABLE orders SET (autovacuum_enabled = OFF)",
        words=("for orders",),
        mend="ALTER TABLE orders RESET (autovacuum_enabled)",
    ),
    "wide rows": Situation(
        code=Code.WIDE_ROWS,
        sql="TRUNCATE orders; ALTER TABLE orders ALTER note SET STORAGE EXTERNAL;"
        "INSERT INTO orders SELECT g, g, g, repeat('x', 500000) FROM generate_series(1, 3) g; ANALYZE orders",
        words=(":schema.orders", "KiB on average", "(50)"),
        mended=fill(chunk=ChunkLimits(min_rows=10)),
    ),
    "indexes that could wait": Situation(
        code=Code.INDEXES_BEFORE_COPY,
        sql=f"CREATE INDEX by_note ON orders_v2 (note); {pretend(2e6)}",
        job=move(),
        words=("1 indexes", "by_note", "2,000,000 rows", "2s"),
        mend="DROP INDEX by_note",
    ),
    "a large target": Situation(
        code=Code.DISK_ROOM,
        job=Job(schema="big", target="orders_v2"),
        words=("big.orders_v2", "66 MiB to", "pg_default", "estimate"),
        mended=move(),
    ),
    "much WAL": Situation(
        code=Code.WAL_VOLUME,
        sql=pretend(2e7),
        words=("2.2 GiB of WAL", "1.0 GiB (max_wal_size)"),
        mended=fill(pace=watching(*ALL_OFF, max_wal_bytes_per_s=1 << 20)),
    ),
    "a slot that nobody reads": Situation(
        code=Code.SLOTS_RETAIN_WAL,
        sql=f"{pretend(2e6)} SELECT pg_create_physical_replication_slot(':schema', true)",
        words=("slots :schema", "disk is full"),
        mend="SELECT pg_drop_replication_slot(':schema')",
        after="SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = ':schema'",
    ),
    # The pace
    "a signal without rights": Situation(
        code=Code.SIGNAL_RIGHTS,
        job=Job(user=":plain", settings={"pace": watching(SignalSpec(kind=SignalKind.WAL_ARCHIVE))}),
        words=("GRANT pg_monitor TO :plain",),
        mended=fill(pace=watching(SignalSpec(kind=SignalKind.WAL_ARCHIVE))),
    ),
    "a signal about nothing": Situation(
        code=Code.SIGNAL_WITHOUT_SUBJECT,
        job=fill(pace=watching(SignalSpec(kind=SignalKind.REPLICATION_LAG))),
        words=("replication_lag", "no standby"),
        mended=fill(pace=watching(SignalSpec(kind=SignalKind.REPLICATION_LAG, off=True))),
    ),
    "a role that sees nobody": Situation(
        code=Code.PRESENCE_UNSEEN,
        job=Job(user=":plain", settings={"pace": Pace()}),
        words=(":plain",),
        mended=fill(pace=Pace()),
    ),
    "a role that may not vacuum": Situation(
        code=Code.VACUUM_NOT_ALLOWED,
        job=Job(user=":plain", settings={"bloat": Bloat(max_growth=0.2)}),
        words=(":plain may not vacuum :schema.orders",),
        mend="ALTER TABLE orders OWNER TO :plain",
    ),
    "a role that may not maintain": Situation(
        code=Code.VACUUM_NOT_ALLOWED,
        job=Job(user=":plain", settings={"bloat": Bloat(max_growth=0.2)}),
        words=("GRANT MAINTAIN ON :schema.orders TO :plain",),
        mend="GRANT MAINTAIN ON orders TO :plain",
        major=18,
    ),
    "a deadline that has passed": Situation(
        code=Code.DEADLINE_UNREACHABLE,
        job=fill(pace=watching(*ALL_OFF, finish_by=datetime(2026, 1, 1, tzinfo=UTC))),
        words=("2026-01-01",),
        mended=fill(pace=watching(*ALL_OFF, finish_by=datetime(2126, 1, 1, tzinfo=UTC))),
    ),
    "a window that is shut": Situation(
        code=Code.WINDOW_CLOSED,
        job=fill(pace=watching(*ALL_OFF, windows=(later(3),))),
        words=("opens in",),
        mended=fill(pace=watching(*ALL_OFF, windows=(TimeWindow.parse("00:00-24:00 UTC"),))),
    ),
    # The list itself
    "an entry that means nothing": Situation(
        code=Code.ACCEPT_UNKNOWN,
        job=fill(accept=("TRIGERS_ON_SOURCE",)),
        words=("TRIGERS_ON_SOURCE", "mean TRIGGERS_ON_SOURCE?"),
        mended=fill(accept=("TRIGGERS_ON_SOURCE",)),
    ),
}
