"""What the job will cost: plans, WAL, room on disk, dead rows, and who has to swallow what it writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from engine.model import Column, Finding, Index, Mode, Side, Table
from engine.plan.forecast import INDEX_ENTRY_S, Forecast, Range, forecast
from engine.plan.preflight.catalogue import Code, finding
from engine.plan.preflight.columns import ColumnMap
from engine.plan.preflight.facts import PreflightFacts, ServerPacing, ServerState, in_sql
from engine.plan.preflight.writes import names_of, statements_of, touches
from engine.spec import SignalKind
from engine.spec.windows import spoken_wait

_MIB: Final = 1 << 20
_NOTABLE_BYTES: Final = 64 * _MIB
"""Growth and WAL below this are not worth a line."""
_NOTABLE_INDEX_S: Final = 1.0
"""Nor are indexes that cost less than this to fill."""
# A page has room for a second version of most of its rows only below this.
_ROOMY_FILLFACTOR: Final = 90
# From here on an index that only summarises blocks (BRIN) does not keep an update from being heap-only.
_SUMMARISING_VERSION_NUM: Final = 160000
_UTF8: Final = "UTF8"
_NO_ENCODING: Final = "SQL_ASCII"
_TEXT_TYPES: Final = frozenset({"json", "jsonb", "xml", "text", "character varying", "character", "name", '"char"'})


def check_cost(facts: PreflightFacts, columns: ColumnMap | None) -> Iterator[Finding]:
    """Statistics and plans, how rows travel, how much is written, and what an update leaves behind."""
    yield from _plans(facts)
    if facts.mode is Mode.COPY and columns is not None:
        yield from _travel(facts, columns)
    yield from _width(facts)
    if facts.in_place:
        yield from _updates(facts)
    yield from _dead_rows(facts)
    estimate = _estimate(facts)
    if estimate is not None:
        yield from _volume(facts, estimate)
        if not facts.in_place and facts.target is not None:
            yield from _target_growth(facts, facts.target, estimate)


def readable_bytes(size: float) -> str:
    """``293 MiB``, ``1.2 TiB``: three digits are enough for an estimate."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.1f} {units[0]}" if value < 10 and units[0] != "B" else f"{value:.0f} {units[0]}"


def _between(values: Range) -> str:
    low, high = readable_bytes(values.low), readable_bytes(values.high)
    return low if low == high else f"{low} to {high}"


def _estimate(facts: PreflightFacts) -> Forecast | None:
    if facts.rows is None or facts.written is None:
        return None
    spec = facts.spec
    return forecast(facts.mode, facts.source, facts.target, rows=facts.rows, workers=spec.workers)


def _plans(facts: PreflightFacts) -> Iterator[Finding]:
    source = facts.source
    if source.rows < 0:
        yield finding(
            Code.STATISTICS_MISSING,
            f"{source.name} was never analysed: spans, progress and plans are guesses",
            f"ANALYZE {in_sql(source)}",
        )
    for plan in facts.plans:
        read = f"; index {plan.index} is there" if plan.index else ""
        nodes = ", ".join(plan.node_types)
        if plan.forced:
            yield finding(
                Code.PLAN_FORCED,
                f"the planner would rather scan {source.name} for {plan.query}; the job forces it to the index"
                f" ({nodes}{f' on {plan.index}' if plan.index else ''})",
                f"ANALYZE {in_sql(source)}; a small table is scanned by right, and then this means nothing",
            )
        elif plan.scans_table:
            yield finding(
                Code.PLAN_SCANS_TABLE,
                f"{plan.query} would read all of {source.name} for each chunk ({nodes}){read}",
                f"ANALYZE {in_sql(source)}, and see that the key's index is valid and not hidden by enable_* settings",
            )


# -- how rows travel -------------------------------------------------------------------------------------------------


def _travel(facts: PreflightFacts, columns: ColumnMap) -> Iterator[Finding]:
    if columns.not_binary and facts.transform is None:
        yield finding(
            Code.BINARY_COPY_IMPOSSIBLE,
            f"{', '.join(columns.not_binary)} of {facts.target.name if facts.target else 'the target'}"
            " cannot travel in binary between databases: rows are copied as text, which is slower",
            "nothing needs doing",
        )
    there, here = facts.states.get(Side.SOURCE), facts.states.get(Side.TARGET)
    texts = [c.target.name for c in columns.columns if _holds_text(c.target)]
    if there is None or here is None or not texts or there.encoding == here.encoding:
        return
    if here.encoding == _UTF8 and there.encoding != _NO_ENCODING:
        return  # has a place for every character
    if _NO_ENCODING in (there.encoding, here.encoding):
        why = "SQL_ASCII says of no byte which character it is, so nothing can be converted"
    else:
        why = f"a character that {here.encoding} does not have stops the job"
    yield finding(
        Code.ENCODINGS_DIFFER,
        f"the source database is encoded in {there.encoding} and the target in {here.encoding}: {why}"
        f" (columns {', '.join(texts)})",
        "make the target database in UTF8, or see that these columns hold ASCII only",
    )


def _holds_text(column: Column) -> bool:
    return column.collation is not None or bool(column.enum_labels) or column.base_type in _TEXT_TYPES


def _width(facts: PreflightFacts) -> Iterator[Finding]:
    source, chunk = facts.source, facts.spec.chunk
    if not facts.rows or facts.rows < 1:
        return
    row_bytes = (source.heap_bytes + source.toast_bytes) / facts.rows
    if row_bytes * chunk.min_rows > chunk.max_bytes:
        fitting = max(1, int(chunk.max_bytes / row_bytes))
        yield finding(
            Code.WIDE_ROWS,
            f"rows of {source.name} take {readable_bytes(row_bytes)} on average: chunk.max_bytes"
            f" ({readable_bytes(chunk.max_bytes)}) holds {fitting} of them, fewer than chunk.min_rows"
            f" ({chunk.min_rows})",
            "nothing needs doing: bytes win over rows, and chunks are small; raise chunk.max_bytes where memory and the"
            " servers allow",
        )


# -- what an update leaves behind ------------------------------------------------------------------------------------


def _updates(facts: PreflightFacts) -> Iterator[Finding]:
    source, names = facts.source, set(facts.filled)
    touched = [i for i in source.indexes if touches(i, names) and not _summarises(i, facts)]
    if touched:
        by = [*(["set"] if facts.spec.set else []), *(["the transform"] if facts.transform is not None else [])]
        who = f"{' and '.join(by)} {'write' if len(by) > 1 else 'writes'}"
        yield finding(
            Code.HOT_UPDATES,
            f"{who} columns that are indexed ({names_of(touched)}): no update can be HOT, and each adds an entry"
            f" to all {len(source.indexes)} indexes of {source.name}",
            "create these indexes after the job (CREATE INDEX CONCURRENTLY)",
        )
    if source.heap_bytes < _NOTABLE_BYTES:
        return
    if not touched and not source.partitions and source.fillfactor > _ROOMY_FILLFACTOR:
        yield finding(
            Code.FILLFACTOR,
            f"{source.name} has fillfactor {source.fillfactor}: its pages have no room for new row versions, so most"
            " updates are not HOT and touch every index",
            "a lower fillfactor helps tables that are rewritten (VACUUM FULL, CLUSTER, pg_repack) before the job;"
            " otherwise let autovacuum make room while the job runs slowly",
        )
    yield finding(
        Code.GROWTH,
        f"the heap of {source.name} ({readable_bytes(source.heap_bytes)}) will grow by up to its own size, and its"
        f" indexes ({readable_bytes(source.index_bytes)}) likewise, since every updated row leaves its old version"
        " behind until vacuum takes it away",
        "see that there is room on disk and in the WAL archive; let autovacuum run on the table meanwhile",
    )


def _summarises(index: Index, facts: PreflightFacts) -> bool:
    return index.method == "brin" and facts.source_server.version_num >= _SUMMARISING_VERSION_NUM


def _dead_rows(facts: PreflightFacts) -> Iterator[Finding]:
    written = facts.written
    # The job vacuums by itself where its growth is limited.
    if written is None or "update" not in statements_of(facts) or facts.spec.bloat.max_growth is not None:
        return
    server = _pacing(facts)
    off = ", ".join(written.autovacuum_off)
    if not off and (server is None or server.autovacuum):
        return
    yield finding(
        Code.AUTOVACUUM_OFF,
        f"autovacuum is switched off for {off or 'the whole server'}: nothing takes away the row versions that the job"
        f" leaves behind in {written.name}",
        f"ALTER TABLE … RESET (autovacuum_enabled), set bloat.max_growth, or VACUUM {in_sql(written)} afterwards"
        if off
        else f"switch autovacuum on, set bloat.max_growth, or VACUUM {in_sql(written)} afterwards",
    )


# -- how much is written ---------------------------------------------------------------------------------------------


def _pacing(facts: PreflightFacts) -> ServerPacing | None:
    """The server of the written table, as the watching session sees it."""
    if facts.pacing is None:
        return None
    return facts.pacing.servers.get(Side.TARGET) or facts.pacing.servers.get(Side.SOURCE)


def _watches(facts: PreflightFacts, kind: SignalKind) -> bool:
    return any(signal.kind is kind for signal in facts.spec.pace.effective_signals())


def _volume(facts: PreflightFacts, estimate: Forecast) -> Iterator[Finding]:
    state, server = facts.written_state, _pacing(facts)
    wal = estimate.wal_bytes
    if state is not None and wal.low > state.max_wal_bytes and facts.spec.pace.max_wal_bytes_per_s is None:
        archived = "" if server is None or server.archive_mode == "off" else "; all of it goes through the archive too"
        yield finding(
            Code.WAL_VOLUME,
            f"the job will write about {_between(wal)} of WAL (an estimate), and after every"
            f" {readable_bytes(state.max_wal_bytes)} (max_wal_size) a checkpoint is forced{archived}",
            "set pace.max_wal_bytes_per_s, or raise max_wal_size for the time; see that there is room for the WAL",
        )
    if wal.high < _NOTABLE_BYTES:
        return
    if state is not None:
        yield from _slots(facts, state, wal)
    if server is not None and server.standbys and not _watches(facts, SignalKind.REPLICATION_LAG):
        yield finding(
            Code.STANDBYS,
            f"standbys replay what the job writes, about {_between(wal)} of WAL ({', '.join(server.standbys)}), and"
            " nothing holds the job back when they fall behind",
            "name replication_lag under pace.signals",
        )


def _slots(facts: PreflightFacts, state: ServerState, wal: Range) -> Iterator[Finding]:
    idle = [slot for slot in state.slots if not slot.active]
    if idle:
        named = ", ".join(f"{slot.name} ({readable_bytes(slot.retained_bytes)} now)" for slot in idle)
        until = (
            "until somebody reads on or the disk is full"
            if state.slot_keep_bytes is None
            else f"up to {readable_bytes(state.slot_keep_bytes)} (max_slot_wal_keep_size), and then the slot is lost"
        )
        yield finding(
            Code.SLOTS_RETAIN_WAL,
            f"nobody reads the replication slots {named}: the WAL of the job, about {_between(wal)}, is kept for them"
            f" {until}",
            "drop slots that nobody uses (pg_drop_replication_slot), or have their readers connect again",
        )
    busy = [slot.name for slot in state.slots if slot.active]
    if busy and state.slot_keep_bytes is not None and wal.low > state.slot_keep_bytes:
        if _watches(facts, SignalKind.SLOT_RETENTION) or _watches(facts, SignalKind.REPLICATION_LAG):
            return
        yield finding(
            Code.SLOTS_RETAIN_WAL,
            f"the job writes more WAL (about {_between(wal)}) than max_slot_wal_keep_size"
            f" ({readable_bytes(state.slot_keep_bytes)}) keeps for {', '.join(busy)}: a reader that falls behind by so"
            " much loses its slot, and must be set up anew",
            "name slot_retention under pace.signals with a max below it",
        )


def _target_growth(facts: PreflightFacts, target: Table, estimate: Forecast) -> Iterator[Finding]:
    growth, state = estimate.growth_bytes, facts.written_state
    if growth.low >= _NOTABLE_BYTES:
        where = f" in tablespace {target.tablespace}" if target.tablespace else ""
        now = "" if state is None or state.database_bytes is None else readable_bytes(state.database_bytes)
        yield finding(
            Code.DISK_ROOM,
            f"{target.name} will take up about {_between(growth)}{where} (an estimate)"
            f"{f'; its whole database has {now} now' if now else ''}",
            "see that the disk has this room and that of the WAL: a server does not tell how much is free",
        )
    later = [i for i in target.indexes if not i.unique and not i.exclusion]
    whole_s = estimate.rows * INDEX_ENTRY_S * len(later)
    if facts.target_has_rows is False and whole_s >= _NOTABLE_INDEX_S:
        yield finding(
            Code.INDEXES_BEFORE_COPY,
            f"{target.name} is empty and has {len(later)} indexes that the job does not need ({names_of(later)}): for"
            f" about {estimate.rows:,.0f} rows they cost at least {spoken_wait(whole_s)} of the workers' time and WAL"
            " for every entry, and come out larger than indexes that are built at once",
            "create them when the job is done (CREATE INDEX CONCURRENTLY)",
        )
