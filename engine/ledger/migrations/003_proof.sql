-- Proof: what was deleted meanwhile, what does not agree, which rows were set aside.
-- Functions and the view are replaced, not dropped, so that their rights and whatever people built on them stay.

ALTER TABLE backfill.job DROP CONSTRAINT job_phase_check;
ALTER TABLE backfill.job
    ADD CONSTRAINT job_phase_check
        CHECK (phase IN ('move', 'sweep', 'verify', 'extra', 'confirm', 'recheck', 'end')),
    ADD COLUMN ends jsonb NOT NULL DEFAULT '{}' -- phase -> where its chain of spans must end; move and sweep: see above
        CHECK (jsonb_typeof(ends) = 'object'),
    ADD COLUMN dual_write jsonb, -- our own triggers as they were when the job was created; null: none of ours
    ADD COLUMN sweep_by text CHECK (sweep_by IN ('keys', 'tombstones')), -- null: not decided yet
    ADD COLUMN target_mark jsonb, -- system, timeline and start of the target's server when the job was created
    ADD COLUMN moved_at timestamptz, -- the last time the job wrote to its tables: end of the move, a repair, a retried row
    ADD COLUMN verification_id bigint, -- the verification that runs, or the last one
    ADD COLUMN quarantined bigint NOT NULL DEFAULT 0; -- rows of it in backfill.quarantine

ALTER TABLE backfill.span DROP CONSTRAINT span_phase_check;
ALTER TABLE backfill.span ADD CONSTRAINT span_phase_check
    CHECK (phase IN ('move', 'sweep', 'verify', 'extra', 'confirm', 'recheck'));

UPDATE backfill.job SET moved_at = finished_at WHERE state = 'done';
UPDATE backfill.job SET sweep_by = 'keys' WHERE phase = 'sweep'; -- its spans are planned already

-- Keys that were deleted at the source while a job may still copy them.  Written by our triggers; read by the sweep.
CREATE TABLE backfill.tombstone (
    id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job text   NOT NULL,
    key text[] -- in the order of the job's key; null: the table was truncated
);

-- One run of `backfill verify`, and what it found.
CREATE TABLE backfill.verification (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id      bigint      NOT NULL REFERENCES backfill.job (id) ON DELETE CASCADE,
    repair      boolean     NOT NULL,
    delete_extra boolean    NOT NULL DEFAULT false, -- a repair may delete rows that only the target holds
    settle_s    double precision NOT NULL CHECK (settle_s >= 0), -- between the two looks at a row that seems to differ
    who         text        NOT NULL DEFAULT session_user || ' (' || coalesce(nullif(current_setting('application_name'), ''), 'unnamed client') || ')',
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    outcome     text        CHECK (outcome IN ('passed', 'mismatch', 'cancelled')), -- null: it runs
    rows        bigint      NOT NULL DEFAULT 0, -- rows of the source that were compared
    suspects    bigint      NOT NULL DEFAULT 0, -- rows that differed at the first look
    mismatched  bigint      NOT NULL DEFAULT 0, -- rows on both sides with other values
    missing     bigint      NOT NULL DEFAULT 0, -- rows of the source that the target does not hold
    extra       bigint      NOT NULL DEFAULT 0, -- rows of the target that the source does not hold
    unsettled   bigint      NOT NULL DEFAULT 0, -- rows that changed at every look and never agreed
    repaired    bigint      NOT NULL DEFAULT 0, -- of all these: mended, and found equal afterwards
    columns     jsonb       NOT NULL DEFAULT '{}', -- column -> rows that differ in it
    not_compared text[]     NOT NULL DEFAULT '{}', -- columns that no verification can compare
    truncated   boolean     NOT NULL DEFAULT false, -- more suspects than are written down
    target_mark jsonb
);
CREATE INDEX verification_job ON backfill.verification (job_id, id);

-- A row that differed at the first look of a verification.
CREATE TABLE backfill.difference (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    verification_id bigint      NOT NULL REFERENCES backfill.verification (id) ON DELETE CASCADE,
    key             text[]      NOT NULL, -- in the order of the job's key
    kind            text        NOT NULL CHECK (kind IN ('changed', 'missing', 'extra')),
    state           text        NOT NULL DEFAULT 'suspect'
                    CHECK (state IN ('suspect', 'agreed', 'confirmed', 'unsettled', 'repaired')),
    columns         text[]      NOT NULL DEFAULT '{}', -- of a changed row: where it differs
    source_mark     text, -- which version of the row was seen; null: none
    target_mark     text,
    seen_at         timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX difference_verification ON backfill.difference (verification_id, id);

-- Rows that were set aside, so that one bad row does not stop a billion others.  No values but the key.
CREATE TABLE backfill.quarantine (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id      bigint      NOT NULL REFERENCES backfill.job (id) ON DELETE CASCADE,
    key         text[]      NOT NULL,
    error_class text        NOT NULL, -- what was wrong, in words without values
    sqlstate    text        NOT NULL,
    attempts    integer     NOT NULL DEFAULT 1 CHECK (attempts > 0),
    first_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (job_id, key)
);

-- How many there are is asked at every status: counted where they come and go.
CREATE FUNCTION backfill.count_quarantined() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE backfill.job j
       SET quarantined = j.quarantined + CASE TG_OP WHEN 'INSERT' THEN c.rows ELSE -c.rows END
      FROM (SELECT job_id, count(*) AS rows FROM changed GROUP BY job_id) c
     WHERE j.id = c.job_id;
    RETURN NULL;
END
$$;
CREATE TRIGGER count_more AFTER INSERT ON backfill.quarantine
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION backfill.count_quarantined();
CREATE TRIGGER count_fewer AFTER DELETE ON backfill.quarantine
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION backfill.count_quarantined();

-- A process of an older release plans the sweep before its barrier and would take one without spans for finished.
CREATE FUNCTION backfill.sweep_is_planned() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF OLD.barrier_snapshot IS NOT NULL AND NEW.barrier_snapshot IS NULL AND NEW.phase = 'sweep'
       AND OLD.phase = 'sweep' AND NEW.sweep_by IS NULL THEN
        RAISE EXCEPTION 'a process of an older release works on this job: end it' USING ERRCODE = 'BF003';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER sweep_is_planned BEFORE UPDATE OF barrier_snapshot ON backfill.job
    FOR EACH ROW EXECUTE FUNCTION backfill.sweep_is_planned();

-- Whoever may run jobs in a ledger that is upgraded may prove them, too.
DO $$
DECLARE
    allowed record;
BEGIN
    FOR allowed IN
        SELECT right_of.privilege_type AS privilege,
               CASE WHEN right_of.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END AS grantee
          FROM pg_catalog.pg_class c
         CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) right_of
          LEFT JOIN pg_catalog.pg_roles r ON r.oid = right_of.grantee
         WHERE c.oid = 'backfill.worker'::regclass AND right_of.grantee <> c.relowner
           AND right_of.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    LOOP
        EXECUTE format(
            'GRANT %s ON backfill.tombstone, backfill.verification, backfill.difference, backfill.quarantine TO %s',
            allowed.privilege, allowed.grantee);
    END LOOP;
END
$$;

-- Called by our triggers for every key that is deleted.  With the rights of the ledger's owner, so that whoever deletes
-- needs none here; an entry that means nothing does no harm, since the sweep looks at the source before it deletes.
-- Only a job that is seen to be past its sweep needs none: a transaction that does not see the job at all may be older
-- than it.
CREATE FUNCTION backfill.bury(p_job text, p_key text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM backfill.job
                WHERE name = p_job AND (phase NOT IN ('move', 'sweep') OR state = 'cancelled')) THEN
        RETURN;
    END IF;
    INSERT INTO backfill.tombstone (job, key) VALUES (p_job, p_key);
END
$$;

REVOKE EXECUTE ON FUNCTION backfill.bury(text, text[]) FROM PUBLIC; -- the triggers' owners are granted it

-- Set one row aside and step over it, behind the same fence as a chunk.  Returns how many rows of the job are set aside
-- now; more than allowed raises BF002, and nothing has happened.
CREATE FUNCTION backfill.set_aside(
    p_job bigint, p_span integer, p_epoch bigint, p_cursor text[], p_hi text[], p_key text[],
    p_error_class text, p_sqlstate text, p_allowed bigint
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    there bigint;
BEGIN
    PERFORM FROM backfill.job WHERE id = p_job FOR NO KEY UPDATE;
    INSERT INTO backfill.quarantine (job_id, key, error_class, sqlstate)
    VALUES (p_job, p_key, p_error_class, p_sqlstate)
    ON CONFLICT (job_id, key) DO UPDATE
       SET error_class = excluded.error_class, sqlstate = excluded.sqlstate,
           attempts = quarantine.attempts + 1, last_at = clock_timestamp();
    SELECT quarantined INTO there FROM backfill.job WHERE id = p_job;
    IF there > p_allowed THEN
        RAISE EXCEPTION 'more rows are bad than errors.max_quarantined allows' USING ERRCODE = 'BF002';
    END IF;
    PERFORM backfill.advance(p_job, p_span, p_epoch, p_cursor, p_hi, p_key, 0, 1, 0, false);
    RETURN there;
END
$$;

-- As before; a verification goes on as one.
CREATE OR REPLACE FUNCTION backfill.resume(job text, reason text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now_state text;
BEGIN
    UPDATE backfill.job j
       SET state = CASE WHEN j.phase IN ('verify', 'extra', 'confirm', 'recheck') THEN 'verifying'
                        WHEN j.started_at IS NULL THEN 'planned' ELSE 'running' END,
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

-- As before; cancelling a verification leaves the job done, and not verified.
CREATE OR REPLACE FUNCTION backfill.cancel(job text, reason text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now_state text;
BEGIN
    PERFORM FROM backfill.job j WHERE j.name = cancel.job FOR NO KEY UPDATE; -- first, like everybody
    UPDATE backfill.verification v SET outcome = 'cancelled', finished_at = clock_timestamp()
      FROM backfill.job j
     WHERE j.name = cancel.job AND j.phase IN ('verify', 'extra', 'confirm', 'recheck')
       AND v.id = j.verification_id AND v.outcome IS NULL;
    UPDATE backfill.job j
       SET state = CASE WHEN j.phase IN ('verify', 'extra', 'confirm', 'recheck') THEN 'done' ELSE 'cancelled' END,
           phase = CASE WHEN j.phase IN ('verify', 'extra', 'confirm', 'recheck') THEN 'end' ELSE j.phase END,
           barrier_snapshot = CASE WHEN j.phase IN ('verify', 'extra', 'confirm', 'recheck') THEN NULL
                                   ELSE j.barrier_snapshot END,
           error_code = NULL, error_message = NULL, error_hint = NULL, resumable = false,
           reason = cancel.reason, finished_at = clock_timestamp()
     WHERE j.name = cancel.job AND j.state NOT IN ('done', 'cancelled');
    SELECT j.state INTO now_state FROM backfill.job j WHERE j.name = cancel.job;
    IF now_state IS NULL THEN
        RAISE EXCEPTION 'no job named %', quote_literal(cancel.job) USING ERRCODE = 'BF404';
    END IF;
    RETURN now_state;
END
$$;

-- As before, with what was proved.  Progress is that of the move, or of the verification that runs.
CREATE OR REPLACE VIEW backfill.status AS
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
       CASE WHEN j.state IN ('planned', 'running', 'verifying') AND w.rows_per_s > 0
            THEN greatest(0, s.estimated - s.passed) / w.rows_per_s END::double precision AS eta_s,
       coalesce(w.workers, 0) AS workers,
       coalesce(s.spans, 0) AS spans_total,
       coalesce(s.finished, 0) AS spans_done,
       coalesce(s.leased, 0) AS spans_running,
       coalesce(s.bytes, 0) AS bytes_done,
       coalesce(s.chunks, 0) AS chunks,
       j.limit_rows_per_s,
       CASE WHEN j.state = 'planned' OR (j.state IN ('running', 'verifying') AND j.barrier_snapshot IS NOT NULL)
            THEN coalesce(j.waits_for, w.waiting)
            WHEN j.state NOT IN ('running', 'verifying') THEN j.reason
            WHEN p.in_force IS NOT NULL AND (p.in_force ->> 'held')::boolean THEN p.in_force ->> 'reason'
            WHEN p.is_valid IS FALSE AND w.workers > 0 THEN 'no pacer: at the minimum'
            ELSE nullif(w.waiting, '') END AS waiting,
       coalesce(w.waits, '{}'::jsonb) AS waits,
       coalesce(w.retries, 0) AS retries,
       j.created_at,
       j.started_at,
       j.finished_at,
       j.error_code,
       j.error_message,
       j.error_hint,
       j.resumable,
       coalesce(j.limit_rows_per_s, (j.spec -> 'pace' ->> 'max_rows_per_s')::double precision) AS max_rows_per_s,
       CASE WHEN p.in_force IS NOT NULL THEN (p.in_force ->> 'rate_per_s')::double precision
            WHEN p.is_valid IS FALSE AND j.state IN ('running', 'verifying') THEN NULL -- the minimum, which each worker knows
            ELSE coalesce(j.limit_rows_per_s, (j.spec -> 'pace' ->> 'max_rows_per_s')::double precision)
            END AS limit_now_rows_per_s,
       (p.in_force ->> 'pressure')::double precision AS pressure,
       p.in_force ->> 'stage' AS stage,
       nullif(p.in_force ->> 'leads', '') AS leads,
       CASE WHEN (p.in_force ->> 'held')::boolean THEN nullif(p.in_force ->> 'leads', '') END AS held_by,
       nullif(p.in_force ->> 'reason', '') AS pace_reason,
       (p.in_force ->> 'chunk_target_s')::double precision AS chunk_target_s,
       (p.in_force ->> 'workers')::integer AS workers_allowed,
       coalesce(p.in_force -> 'signals', '[]'::jsonb) AS signals,
       nullif(p.in_force -> 'deadline', 'null') AS deadline,
       nullif(p.in_force -> 'growth', 'null') AS growth,
       CASE WHEN p.holds THEN p.host || ':' || p.os_pid END AS pacer,
       p.is_valid AS pace_valid, -- null: nothing was published yet
       p.age_s AS pace_age_s,
       j.pace || jsonb_strip_nulls(jsonb_build_object('max_rows_per_s', j.limit_rows_per_s)) AS orders,
       j.quarantined,
       CASE v.outcome WHEN 'passed' THEN true WHEN 'mismatch' THEN false END AS verified, -- null: nobody knows
       to_jsonb(v) AS verification -- the one that runs, or the last one
  FROM backfill.job j
  LEFT JOIN backfill.verification v ON v.id = j.verification_id
  LEFT JOIN LATERAL (
       SELECT (sum(rows) FILTER (WHERE phase = 'move'))::bigint AS rows_done,
              sum(bytes)::bigint AS bytes,
              (sum(chunks) FILTER (WHERE phase IN ('move', 'sweep')))::bigint AS chunks,
              sum(rows_estimated) FILTER (WHERE is_current) AS estimated,
              sum(CASE WHEN cursor = hi THEN rows_estimated
                       ELSE least(rows_estimated, scanned::double precision) END) FILTER (WHERE is_current) AS passed,
              count(*) FILTER (WHERE phase = j.phase OR j.phase = 'end') AS spans,
              count(*) FILTER (WHERE (phase = j.phase OR j.phase = 'end') AND cursor = hi) AS finished,
              count(*) FILTER (WHERE cursor IS DISTINCT FROM hi AND lease_until > clock_timestamp()) AS leased
         FROM (SELECT *, (phase IN ('move', 'sweep'))
                         = (j.phase NOT IN ('verify', 'extra', 'confirm', 'recheck')) AS is_current
                 FROM backfill.span
                WHERE job_id = j.id) of_job) s ON true
  LEFT JOIN LATERAL (
       SELECT count(*) FILTER (WHERE fresh) AS workers,
              sum(rows_per_s) FILTER (WHERE fresh) AS rows_per_s,
              CASE WHEN bool_and(waiting <> '') FILTER (WHERE at_work) THEN max(waiting) FILTER (WHERE at_work)
                   ELSE '' END AS waiting,
              sum(retries)::bigint AS retries,
              (SELECT jsonb_object_agg(reason, seconds)
                 FROM (SELECT e.key AS reason, round(sum(e.value::numeric), 1) AS seconds
                         FROM backfill.worker v CROSS JOIN LATERAL jsonb_each_text(v.waits) e
                        WHERE v.job_id = j.id GROUP BY e.key) per_reason) AS waits
         FROM (SELECT *, fresh AND waiting <> 'parked' AS at_work -- a parked one is not needed: it waits for nothing
                 FROM (SELECT *, seen_at > clock_timestamp() - interval '15 seconds' AS fresh
                         FROM backfill.worker WHERE job_id = j.id) recent) recent) w ON true
  LEFT JOIN LATERAL (
       SELECT published.*,
              CASE WHEN is_valid AND j.state IN ('running', 'verifying') THEN decision END AS in_force
         FROM (SELECT host, os_pid, decision,
                      process IS NOT NULL AND lease_until > clock_timestamp() AS holds,
                      greatest(0, extract(epoch FROM clock_timestamp() - published_at))::double precision AS age_s,
                      -- Further ahead than twice as long as it was given: somebody's clock jumped.
                      valid_until > clock_timestamp()
                      AND valid_until < clock_timestamp() + 2 * (valid_until - published_at) AS is_valid
                 FROM backfill.pacer WHERE job_id = j.id) published) p ON true;

INSERT INTO backfill.version (version) VALUES (3);
