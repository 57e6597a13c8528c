-- Requests: who asked, where a database's role is one for all; and submissions that must not begin a job twice.

-- The setting backfill.by says it, for a session or a transaction: "token argo via daemon@host".  It is a courtesy and
-- no proof: whoever may write here may say anything.
ALTER TABLE backfill.event ALTER COLUMN who SET DEFAULT coalesce(
    nullif(current_setting('backfill.by', true), ''),
    session_user || ' (' || coalesce(nullif(current_setting('application_name'), ''), 'unnamed client') || ')');
ALTER TABLE backfill.verification ALTER COLUMN who SET DEFAULT coalesce(
    nullif(current_setting('backfill.by', true), ''),
    session_user || ' (' || coalesce(nullif(current_setting('application_name'), ''), 'unnamed client') || ')');

-- Submissions that came with a key of the caller's own: the same key means the same job.  Forgotten with the job, or
-- after some days.
CREATE TABLE backfill.request (
    caller    text        NOT NULL,
    key       text        NOT NULL, -- a hash of it
    spec_hash text        NOT NULL,
    job_id    bigint      NOT NULL REFERENCES backfill.job (id) ON DELETE CASCADE,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (caller, key)
);
CREATE INDEX request_job ON backfill.request (job_id);
CREATE INDEX request_at ON backfill.request (at);

-- Whoever may submit jobs in a ledger that is upgraded may note such keys, too.
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
         WHERE c.oid = 'backfill.job'::regclass AND right_of.grantee <> c.relowner
           AND right_of.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    LOOP
        EXECUTE format('GRANT %s ON backfill.request TO %s', allowed.privilege, allowed.grantee);
    END LOOP;
END
$$;

-- As before, with since when the same gate decides.  What a document says is taken for a number only where it is one:
-- whoever may write here could spoil one row, and that must not hide all the others.
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
       CASE WHEN j.state IN ('planned', 'running', 'verifying') AND w.rows_per_s > 1e-9 AND s.estimated < 1e18
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
            WHEN p.in_force -> 'held' = 'true' THEN p.in_force ->> 'reason'
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
       coalesce(j.limit_rows_per_s, n.max_rows_per_s) AS max_rows_per_s,
       CASE WHEN p.in_force IS NOT NULL THEN n.rate_per_s
            WHEN p.is_valid IS FALSE AND j.state IN ('running', 'verifying') THEN NULL -- the minimum, which each worker knows
            ELSE coalesce(j.limit_rows_per_s, n.max_rows_per_s) END AS limit_now_rows_per_s,
       n.pressure,
       p.in_force ->> 'stage' AS stage,
       nullif(p.in_force ->> 'leads', '') AS leads,
       CASE WHEN p.in_force -> 'held' = 'true' THEN nullif(p.in_force ->> 'leads', '') END AS held_by,
       nullif(p.in_force ->> 'reason', '') AS pace_reason,
       n.chunk_target_s,
       n.workers::integer AS workers_allowed,
       CASE WHEN jsonb_typeof(p.in_force -> 'signals') = 'array' THEN p.in_force -> 'signals' ELSE '[]' END AS signals,
       nullif(p.in_force -> 'deadline', 'null') AS deadline,
       nullif(p.in_force -> 'growth', 'null') AS growth,
       CASE WHEN p.holds THEN p.host || ':' || p.os_pid END AS pacer,
       p.is_valid AS pace_valid, -- null: nothing was published yet
       p.age_s AS pace_age_s,
       j.pace || jsonb_strip_nulls(jsonb_build_object('max_rows_per_s', j.limit_rows_per_s)) AS orders,
       j.quarantined,
       CASE v.outcome WHEN 'passed' THEN true WHEN 'mismatch' THEN false END AS verified, -- null: nobody knows
       to_jsonb(v) AS verification, -- the one that runs, or the last one
       p.in_force ->> 'since' AS pace_since
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
                 FROM (SELECT e.key AS reason, round(sum(e.value::text::numeric), 1) AS seconds
                         FROM backfill.worker v
                        CROSS JOIN LATERAL jsonb_each(
                              CASE WHEN jsonb_typeof(v.waits) = 'object' THEN v.waits ELSE '{}' END) e
                        WHERE v.job_id = j.id AND jsonb_typeof(e.value) = 'number' AND length(e.value::text) < 300
                        GROUP BY e.key) per_reason) AS waits
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
                 FROM backfill.pacer WHERE job_id = j.id) published) p ON true
  LEFT JOIN LATERAL (
       SELECT max(number) FILTER (WHERE name = 'max_rows_per_s') AS max_rows_per_s,
              max(number) FILTER (WHERE name = 'rate_per_s') AS rate_per_s,
              max(number) FILTER (WHERE name = 'pressure') AS pressure,
              max(number) FILTER (WHERE name = 'chunk_target_s') AS chunk_target_s,
              max(number) FILTER (WHERE name = 'workers' AND number BETWEEN 0 AND 1e9) AS workers
         FROM (SELECT name,
                      CASE WHEN jsonb_typeof(value) = 'number' AND length(value::text) < 300
                           THEN value::text::double precision END AS number
                 FROM (VALUES ('max_rows_per_s', j.spec -> 'pace' -> 'max_rows_per_s'),
                              ('rate_per_s', p.in_force -> 'rate_per_s'),
                              ('pressure', p.in_force -> 'pressure'),
                              ('chunk_target_s', p.in_force -> 'chunk_target_s'),
                              ('workers', p.in_force -> 'workers')) said (name, value)) numbers) n ON true;

INSERT INTO backfill.version (version) VALUES (5);
