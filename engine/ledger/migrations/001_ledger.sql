-- The ledger: what each job is, which part of the key space is moved, and who may move the next chunk.
-- Everything lives in schema "backfill" of the target database, so that a chunk's rows and its cursor commit together.
-- Prose, state diagram and list of failures: engine/ledger/README.md.

CREATE SCHEMA backfill;
COMMENT ON SCHEMA backfill IS 'Ledger of backfill-engine: jobs, spans, leases, history. Remove with: backfill cleanup --all';

CREATE TABLE backfill.version (
    version     integer     NOT NULL PRIMARY KEY CHECK (version > 0),
    upgraded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE backfill.job (
    id               bigint           GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name             text             NOT NULL UNIQUE CHECK (name <> ''),
    mode             text             NOT NULL CHECK (mode IN ('update', 'insert', 'copy')),
    state            text             NOT NULL DEFAULT 'planned'
                     CHECK (state IN ('planned', 'running', 'paused', 'verifying', 'done', 'failed', 'cancelled')),
    phase            text             NOT NULL DEFAULT 'move' CHECK (phase IN ('move', 'sweep', 'end')),
    source           text             NOT NULL, -- for people: host:port/database and table, no secrets
    target           text             NOT NULL,
    identity         jsonb            NOT NULL, -- what makes it this job; a difference refuses the run
    spec             jsonb            NOT NULL, -- the whole spec, references instead of DSNs
    fingerprint      jsonb            NOT NULL, -- schema of both tables as planned
    key_types        text[]           NOT NULL, -- the key's columns, as the cursor's texts must be cast
    rows_estimated   double precision NOT NULL CHECK (rows_estimated >= 0),
    move_end         text[], -- the frozen last key: where the chain of spans must end; null: an empty table
    sweep_end        text[],
    -- The start barrier: transactions of the source that were running when the bounds were frozen.
    barrier_snapshot text, -- those transactions, by virtual id and side, as JSON; null: nothing to wait for
    waits_for        text, -- whom the barrier waits for, for people
    limit_rows_per_s double precision CHECK (limit_rows_per_s > 0), -- set by backfill.pace(); null: as the spec says
    error_code       text,
    error_message    text,
    error_hint       text,
    resumable        boolean          NOT NULL DEFAULT false,
    reason           text, -- why it is in this state, as the person or guard said it
    refreeze         boolean          NOT NULL DEFAULT false, -- a person resumed it after a schema change: look again
    created_at       timestamptz      NOT NULL DEFAULT clock_timestamp(),
    started_at       timestamptz, -- the first chunk was allowed
    finished_at      timestamptz
);

CREATE TABLE backfill.span (
    job_id         bigint           NOT NULL REFERENCES backfill.job (id) ON DELETE CASCADE,
    id             integer          NOT NULL CHECK (id > 0),
    phase          text             NOT NULL CHECK (phase IN ('move', 'sweep')),
    lo             text[], -- exclusive; null: from the first key on
    hi             text[]           NOT NULL, -- inclusive; frozen, except that a thief may lower it
    cursor         text[], -- the last key moved; equal to lo before the first chunk, to hi at the end
    epoch          bigint           NOT NULL DEFAULT 0 CHECK (epoch >= 0), -- fencing token: +1 with every claim
    worker         uuid,
    lease_until    timestamptz, -- by this database's clock; null: nobody holds it
    backends       jsonb            NOT NULL DEFAULT '[]', -- server processes of the holder, for its successor to end
    rows           bigint           NOT NULL DEFAULT 0 CHECK (rows >= 0),
    scanned        bigint           NOT NULL DEFAULT 0 CHECK (scanned >= 0),
    bytes          bigint           NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    chunks         bigint           NOT NULL DEFAULT 0 CHECK (chunks >= 0),
    rows_estimated double precision NOT NULL CHECK (rows_estimated >= 0),
    PRIMARY KEY (job_id, id),
    CHECK (lo IS DISTINCT FROM hi),
    CHECK (cardinality(hi) > 0)
)
-- One row is updated per chunk: room for HOT updates on the page, and a vacuum that comes early and often.
WITH (
    fillfactor = 25,
    autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_threshold = 10000, autovacuum_analyze_scale_factor = 0
);

-- Transactions in which this engine inserted rows, for jobs that take deleted rows out again: only these rows may go.
-- The low 32 bits, which is what a row's xmin shows.  Emptied when the job is done.
CREATE TABLE backfill.written (
    job_id bigint NOT NULL,
    xid    bigint NOT NULL CHECK (xid BETWEEN 0 AND 4294967295)
);
CREATE INDEX written_by_job ON backfill.written (job_id, xid);

CREATE TABLE backfill.worker (
    id         uuid             NOT NULL PRIMARY KEY,
    job_id     bigint           NOT NULL REFERENCES backfill.job (id) ON DELETE CASCADE,
    host       text             NOT NULL,
    os_pid     integer          NOT NULL,
    started_at timestamptz      NOT NULL DEFAULT clock_timestamp(),
    seen_at    timestamptz      NOT NULL DEFAULT clock_timestamp(),
    rows_per_s double precision NOT NULL DEFAULT 0,
    retries    bigint           NOT NULL DEFAULT 0,
    waiting    text             NOT NULL DEFAULT '', -- why it does not move; empty while it does
    waits      jsonb            NOT NULL DEFAULT '{}' -- seconds waited by reason
) WITH (fillfactor = 50);

-- History: append only.
CREATE TABLE backfill.event (
    id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job    text        NOT NULL,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    who    text        NOT NULL DEFAULT session_user || ' (' || coalesce(nullif(current_setting('application_name'), ''), 'unnamed client') || ')',
    what   text        NOT NULL,
    detail jsonb       NOT NULL DEFAULT '{}'
);
CREATE INDEX event_job ON backfill.event (job, id);

-- The fence.  Called by every chunk inside its own transaction, after its rows are written.  Late, doubled and
-- stolen-from chunks match nothing here and roll back with what they wrote: epoch, cursor and upper bound must all be
-- the ones the chunk was cut from.  Returns the seconds the statement has run so far, by the server's clock.
CREATE FUNCTION backfill.advance(
    p_job bigint, p_span integer, p_epoch bigint, p_cursor text[], p_hi text[], p_to text[],
    p_rows bigint, p_scanned bigint, p_bytes bigint, p_remember boolean
) RETURNS double precision
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE backfill.span
       SET cursor = p_to, rows = rows + p_rows, scanned = scanned + p_scanned, bytes = bytes + p_bytes,
           chunks = chunks + 1
     WHERE job_id = p_job AND id = p_span AND epoch = p_epoch AND hi = p_hi
       AND (cursor = p_cursor OR (cursor IS NULL AND p_cursor IS NULL));
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this chunk belongs to somebody else by now' USING ERRCODE = 'BF001';
    END IF;
    IF p_remember AND p_rows > 0 THEN
        INSERT INTO backfill.written (job_id, xid)
        VALUES (p_job, (pg_current_xact_id()::text::numeric % 4294967296)::bigint);
    END IF;
    RETURN extract(epoch FROM clock_timestamp() - statement_timestamp());
END
$$;

-- Every change of state is history and is told to whoever listens.  Chunks never notify: NOTIFY takes a lock that all
-- committing transactions of the database would queue for.
CREATE FUNCTION backfill.job_changed() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO backfill.event (job, what, detail)
        VALUES (NEW.name, 'created', jsonb_build_object('mode', NEW.mode, 'rows_estimated', NEW.rows_estimated));
    ELSIF OLD.state IS DISTINCT FROM NEW.state THEN
        INSERT INTO backfill.event (job, what, detail)
        VALUES (NEW.name, NEW.state, jsonb_strip_nulls(jsonb_build_object(
            'from', OLD.state, 'reason', NEW.reason, 'error', NEW.error_code, 'message', NEW.error_message)));
    ELSIF OLD.limit_rows_per_s IS DISTINCT FROM NEW.limit_rows_per_s THEN
        INSERT INTO backfill.event (job, what, detail)
        VALUES (NEW.name, 'pace', jsonb_build_object('from', OLD.limit_rows_per_s, 'to', NEW.limit_rows_per_s));
    ELSIF OLD.spec IS DISTINCT FROM NEW.spec THEN
        INSERT INTO backfill.event (job, what, detail)
        VALUES (NEW.name, 'settings', jsonb_build_object('from', OLD.spec, 'to', NEW.spec));
    ELSIF OLD.phase IS DISTINCT FROM NEW.phase THEN
        INSERT INTO backfill.event (job, what, detail)
        VALUES (NEW.name, 'phase', jsonb_build_object('from', OLD.phase, 'to', NEW.phase));
    END IF;
    PERFORM pg_notify('backfill', NEW.name);
    RETURN NULL;
END
$$;

CREATE TRIGGER job_changed AFTER INSERT OR UPDATE OF state, limit_rows_per_s, spec, phase ON backfill.job
    FOR EACH ROW EXECUTE FUNCTION backfill.job_changed();

-- For people at psql: SELECT backfill.pause('orders-amount-cents', 'disk is filling');
CREATE FUNCTION backfill.pause(job text, reason text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now_state text;
BEGIN
    UPDATE backfill.job j SET state = 'paused', reason = pause.reason
     WHERE j.name = pause.job AND j.state IN ('planned', 'running', 'verifying');
    SELECT j.state INTO now_state FROM backfill.job j WHERE j.name = pause.job;
    IF now_state IS NULL THEN
        RAISE EXCEPTION 'no job named %', quote_literal(pause.job) USING ERRCODE = 'BF404';
    END IF;
    RETURN now_state;
END
$$;

CREATE FUNCTION backfill.resume(job text, reason text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now_state text;
BEGIN
    UPDATE backfill.job j
       SET state = CASE WHEN j.started_at IS NULL THEN 'planned' ELSE 'running' END,
           reason = resume.reason,
           refreeze = j.refreeze OR coalesce(j.error_code = 'schema_drift', false),
           error_code = NULL, error_message = NULL, error_hint = NULL, resumable = false, finished_at = NULL
     WHERE j.name = resume.job AND (j.state = 'paused' OR (j.state = 'failed' AND j.resumable));
    SELECT j.state INTO now_state FROM backfill.job j WHERE j.name = resume.job;
    IF now_state IS NULL THEN
        RAISE EXCEPTION 'no job named %', quote_literal(resume.job) USING ERRCODE = 'BF404';
    END IF;
    RETURN now_state;
END
$$;

CREATE FUNCTION backfill.cancel(job text, reason text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now_state text;
BEGIN
    UPDATE backfill.job j SET state = 'cancelled', reason = cancel.reason, finished_at = clock_timestamp()
     WHERE j.name = cancel.job AND j.state NOT IN ('done', 'cancelled');
    SELECT j.state INTO now_state FROM backfill.job j WHERE j.name = cancel.job;
    IF now_state IS NULL THEN
        RAISE EXCEPTION 'no job named %', quote_literal(cancel.job) USING ERRCODE = 'BF404';
    END IF;
    RETURN now_state;
END
$$;

-- null lifts the limit back to what the spec says.
CREATE FUNCTION backfill.pace(job text, rows_per_s double precision) RETURNS double precision
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE backfill.job j SET limit_rows_per_s = pace.rows_per_s WHERE j.name = pace.job;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no job named %', quote_literal(pace.job) USING ERRCODE = 'BF404';
    END IF;
    RETURN pace.rows_per_s;
END
$$;

-- One line per job, for psql and for the status command alike.
CREATE VIEW backfill.status AS
SELECT j.name AS job,
       j.state,
       j.mode,
       j.phase,
       j.source,
       j.target,
       coalesce(s.rows_done, 0) AS rows_done,
       j.rows_estimated,
       CASE WHEN j.state = 'done' THEN 1.0
            WHEN s.estimated > 0 THEN least(0.999, s.passed / s.estimated)
            ELSE 0.0 END::double precision AS progress,
       coalesce(w.rows_per_s, 0) AS rows_per_s,
       CASE WHEN j.state IN ('planned', 'running') AND w.rows_per_s > 0
            THEN greatest(0, s.estimated - s.passed) / w.rows_per_s END::double precision AS eta_s,
       coalesce(w.workers, 0) AS workers,
       coalesce(s.spans, 0) AS spans_total,
       coalesce(s.finished, 0) AS spans_done,
       coalesce(s.leased, 0) AS spans_running,
       coalesce(s.bytes, 0) AS bytes_done,
       coalesce(s.chunks, 0) AS chunks,
       j.limit_rows_per_s,
       CASE WHEN j.state = 'planned' THEN coalesce(j.waits_for, w.waiting)
            WHEN j.state = 'running' THEN nullif(w.waiting, '')
            ELSE j.reason END AS waiting,
       coalesce(w.waits, '{}'::jsonb) AS waits,
       coalesce(w.retries, 0) AS retries,
       j.created_at,
       j.started_at,
       j.finished_at,
       j.error_code,
       j.error_message,
       j.error_hint,
       j.resumable
  FROM backfill.job j
  LEFT JOIN LATERAL (
       SELECT (sum(rows) FILTER (WHERE phase = 'move'))::bigint AS rows_done,
              sum(bytes)::bigint AS bytes,
              sum(chunks)::bigint AS chunks,
              sum(rows_estimated) AS estimated,
              sum(CASE WHEN cursor = hi THEN rows_estimated
                       ELSE least(rows_estimated, scanned::double precision) END) AS passed,
              count(*) FILTER (WHERE phase = j.phase OR j.phase = 'end') AS spans,
              count(*) FILTER (WHERE (phase = j.phase OR j.phase = 'end') AND cursor = hi) AS finished,
              count(*) FILTER (WHERE cursor IS DISTINCT FROM hi AND lease_until > clock_timestamp()) AS leased
         FROM backfill.span
        WHERE job_id = j.id) s ON true
  LEFT JOIN LATERAL (
       SELECT count(*) FILTER (WHERE fresh) AS workers,
              sum(rows_per_s) FILTER (WHERE fresh) AS rows_per_s,
              CASE WHEN bool_and(waiting <> '') FILTER (WHERE fresh) THEN max(waiting) FILTER (WHERE fresh) ELSE '' END
                  AS waiting,
              sum(retries)::bigint AS retries,
              (SELECT jsonb_object_agg(reason, seconds)
                 FROM (SELECT e.key AS reason, round(sum(e.value::numeric), 1) AS seconds
                         FROM backfill.worker v CROSS JOIN LATERAL jsonb_each_text(v.waits) e
                        WHERE v.job_id = j.id GROUP BY e.key) per_reason) AS waits
         FROM (SELECT *, seen_at > clock_timestamp() - interval '15 seconds' AS fresh
                 FROM backfill.worker WHERE job_id = j.id) recent) w ON true;

INSERT INTO backfill.version (version) VALUES (1);
