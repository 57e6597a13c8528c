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

INSERT INTO backfill.version (version) VALUES (5);
