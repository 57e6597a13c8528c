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
    SELECT p_job, p_keys[(n - 1) * p_width + 1 : n * p_width], p_error_classes[n], p_sqlstates[n]
      FROM generate_series(1, cardinality(p_sqlstates)) AS n
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

INSERT INTO backfill.version (version) VALUES (6);
