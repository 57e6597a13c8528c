-- Reporting: which process exposes the metrics that are read from this ledger.

-- One row for the whole ledger, updated every other second; born when the first process reports.
CREATE TABLE backfill.reporter (
    id          boolean     NOT NULL PRIMARY KEY DEFAULT true CHECK (id),
    process     uuid, -- null: nobody
    host        text,
    os_pid      integer,
    lease_until timestamptz, -- by this database's clock
    held_since  timestamptz
)
WITH (
    fillfactor = 10,
    autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_threshold = 10000, autovacuum_analyze_scale_factor = 0
);

-- The view asks for the workers of each job: with many jobs, of many.
CREATE INDEX worker_job ON backfill.worker (job_id);

-- Whoever may run jobs in a ledger that is upgraded may report on them, too.
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
        EXECUTE format('GRANT %s ON backfill.reporter TO %s', allowed.privilege, allowed.grantee);
    END LOOP;
END
$$;

INSERT INTO backfill.version (version) VALUES (4);
