-- Transforms: rows that a chunk's function could not do are set aside together with the chunk that the others are of.

-- Set rows aside in the transaction of their chunk.  No fence of its own: backfill.advance follows in the same
-- transaction, and takes all of it back where the chunk is not ours any more.  Returns how many rows of the job are set
-- aside now; more than allowed raises BF002, and nothing has happened.
--
-- p_keys: all keys one after the other, p_width texts each; the n-th of the other arrays is the n-th key's.
CREATE FUNCTION backfill.set_aside_all(
    p_job bigint, p_keys text[], p_width integer, p_error_classes text[], p_sqlstates text[], p_allowed bigint
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    there bigint;
BEGIN
    IF p_width < 1 OR cardinality(p_keys) <> p_width * cardinality(p_sqlstates)
       OR cardinality(p_error_classes) <> cardinality(p_sqlstates) THEN
        RAISE EXCEPTION 'keys, errors and SQLSTATEs do not belong together' USING ERRCODE = 'BF003';
    END IF;
    PERFORM FROM backfill.job WHERE id = p_job FOR NO KEY UPDATE;
    INSERT INTO backfill.quarantine (job_id, key, error_class, sqlstate)
    -- Neither slices nor subscripts, which go through all of the array for each row; and no join, whose plan might.
    SELECT p_job, array_agg(part ORDER BY i) FILTER (WHERE i IS NOT NULL), max(error_class), max(sqlstate)
      FROM (SELECT (i - 1) / p_width + 1 AS n, i, part, NULL::text AS error_class, NULL::text AS sqlstate
              FROM unnest(p_keys) WITH ORDINALITY AS parts (part, i)
             UNION ALL
            SELECT n, NULL, NULL, error_class, sqlstate
              FROM unnest(p_error_classes, p_sqlstates) WITH ORDINALITY AS errors (error_class, sqlstate, n)) AS of_all
     GROUP BY n ORDER BY n
    ON CONFLICT (job_id, key) DO UPDATE
       SET error_class = excluded.error_class, sqlstate = excluded.sqlstate,
           attempts = quarantine.attempts + 1, last_at = clock_timestamp();
    SELECT quarantined INTO there FROM backfill.job WHERE id = p_job;
    IF there > p_allowed THEN
        RAISE EXCEPTION 'more rows are bad than errors.max_quarantined allows' USING ERRCODE = 'BF002';
    END IF;
    RETURN there;
END
$$;

-- In a ledger that is upgraded: whoever may set aside one row, and nobody else.
DO $$
DECLARE
    one record;
    allowed record;
BEGIN
    SELECT p.proacl, p.proowner INTO STRICT one
      FROM pg_catalog.pg_proc p
     WHERE p.proname = 'set_aside' AND p.pronamespace = 'backfill'::regnamespace;
    IF one.proacl IS NULL THEN
        RETURN; -- as it was made: everybody, as with the new one
    END IF;
    REVOKE EXECUTE ON FUNCTION backfill.set_aside_all FROM PUBLIC;
    FOR allowed IN
        SELECT CASE WHEN right_of.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END AS grantee
          FROM pg_catalog.aclexplode(one.proacl) right_of
          LEFT JOIN pg_catalog.pg_roles r ON r.oid = right_of.grantee
         WHERE right_of.grantee <> one.proowner AND right_of.privilege_type = 'EXECUTE'
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION backfill.set_aside_all TO %s', allowed.grantee);
    END LOOP;
END
$$;

INSERT INTO backfill.version (version) VALUES (6);
