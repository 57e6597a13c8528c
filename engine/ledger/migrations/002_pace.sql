-- Pacing: what an operator orders while a job runs, which process decides its pace, and what that process decided.
-- The view is replaced, not dropped, so that its rights and whatever people built on it stay.

ALTER TABLE backfill.job
    ADD COLUMN pace jsonb NOT NULL DEFAULT '{}' -- orders beside limit_rows_per_s; empty: as the spec says
        CHECK (jsonb_typeof(pace) = 'object'),
    ADD COLUMN heap_bytes bigint CHECK (heap_bytes >= 0); -- of the table in place, when the job was created

-- A limit without an end is none; NaN counts as larger than anything.
UPDATE backfill.job SET limit_rows_per_s = NULL WHERE limit_rows_per_s >= 'Infinity';
ALTER TABLE backfill.job ADD CHECK (limit_rows_per_s < 'Infinity');

-- Who decides the pace of a job, and what it decided last.  One row per job, updated every second or so.
CREATE TABLE backfill.pacer (
    job_id       bigint      NOT NULL PRIMARY KEY REFERENCES backfill.job (id) ON DELETE CASCADE,
    process      uuid, -- null: nobody
    host         text,
    os_pid       integer,
    lease_until  timestamptz, -- by this database's clock
    held_since   timestamptz,
    decision     jsonb, -- as published; null: nothing yet
    published_at timestamptz,
    valid_until  timestamptz -- afterwards every worker goes at the minimum
)
-- Toasted decisions would cost a row and two index entries elsewhere for every one of them.
WITH (
    fillfactor = 10, toast_tuple_target = 8160,
    autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_threshold = 10000, autovacuum_analyze_scale_factor = 0
);

-- Written and committed by the commit probe, ten times a second, to feel what the application feels.
CREATE TABLE backfill.heartbeat (
    id smallint    NOT NULL PRIMARY KEY,
    at timestamptz NOT NULL
)
WITH (
    fillfactor = 10,
    autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_threshold = 10000, autovacuum_analyze_scale_factor = 0
);

-- Whoever may run jobs in a ledger that is upgraded may pace them, too.
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
        EXECUTE format('GRANT %s ON backfill.pacer, backfill.heartbeat TO %s', allowed.privilege, allowed.grantee);
    END LOOP;
END
$$;

-- All orders of a job as one flat list: max_rows_per_s, workers, signals.read_latency.target, ...
CREATE FUNCTION backfill.flat_orders(p_pace jsonb, p_limit_rows_per_s double precision)
RETURNS TABLE (key text, value jsonb)
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'max_rows_per_s', to_jsonb(p_limit_rows_per_s) WHERE p_limit_rows_per_s IS NOT NULL
    UNION ALL
    SELECT o.key, o.value FROM jsonb_each(p_pace) o WHERE o.key <> 'signals'
    UNION ALL
    SELECT 'signals.' || s.key || '.' || f.key, f.value
      FROM jsonb_each(CASE jsonb_typeof(p_pace -> 'signals') WHEN 'object' THEN p_pace -> 'signals' ELSE '{}' END) s
     CROSS JOIN LATERAL jsonb_each(CASE jsonb_typeof(s.value) WHEN 'object' THEN s.value ELSE '{}' END) f
$$;

-- As before, and told of every order on the pace.  The reason of an order comes by the setting backfill.reason, local
-- to its transaction, because the job's own reason says why it is in its state.
CREATE OR REPLACE FUNCTION backfill.job_changed() RETURNS trigger
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
    ELSIF OLD.limit_rows_per_s IS DISTINCT FROM NEW.limit_rows_per_s OR OLD.pace IS DISTINCT FROM NEW.pace THEN
        INSERT INTO backfill.event (job, what, detail)
        SELECT NEW.name, 'pace',
               jsonb_build_object(
                   'from', coalesce(jsonb_object_agg(key, before.value), '{}'),
                   'to', coalesce(jsonb_object_agg(key, after.value), '{}'))
               || jsonb_strip_nulls(jsonb_build_object('reason', nullif(current_setting('backfill.reason', true), '')))
          FROM backfill.flat_orders(OLD.pace, OLD.limit_rows_per_s) before
          FULL JOIN backfill.flat_orders(NEW.pace, NEW.limit_rows_per_s) after USING (key)
         WHERE before.value IS DISTINCT FROM after.value;
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

DROP TRIGGER job_changed ON backfill.job;
CREATE TRIGGER job_changed AFTER INSERT OR UPDATE OF state, limit_rows_per_s, pace, spec, phase ON backfill.job
    FOR EACH ROW EXECUTE FUNCTION backfill.job_changed();

-- One line per job, for psql and for the status command alike.  limit_rows_per_s is what a person ordered,
-- max_rows_per_s that or else what the spec says, limit_now_rows_per_s what the pacer allows at this moment.
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
            WHEN j.state <> 'running' THEN j.reason
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
            WHEN p.is_valid IS FALSE AND j.state = 'running' THEN NULL -- the minimum, which each worker knows
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
       j.pace || jsonb_strip_nulls(jsonb_build_object('max_rows_per_s', j.limit_rows_per_s)) AS orders
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
              CASE WHEN is_valid AND j.state = 'running' THEN decision END AS in_force
         FROM (SELECT host, os_pid, decision,
                      process IS NOT NULL AND lease_until > clock_timestamp() AS holds,
                      greatest(0, extract(epoch FROM clock_timestamp() - published_at))::double precision AS age_s,
                      -- Further ahead than twice as long as it was given: somebody's clock jumped.
                      valid_until > clock_timestamp()
                      AND valid_until < clock_timestamp() + 2 * (valid_until - published_at) AS is_valid
                 FROM backfill.pacer WHERE job_id = j.id) published) p ON true;

INSERT INTO backfill.version (version) VALUES (2);
