-- Every statement that the ledger runs, by name.  One sentence each says what it does; engine/ledger/queries.py loads
-- them.  Times are the database's own: a worker's clock never decides about a lease.

-- name: version
-- 1 when there is a ledger, else null.
-- From the catalogue's rows, not by to_regclass(): whoever waited for another process to create the ledger would still
-- look into a cache from before the wait, and create it once more.
SELECT 1 AS present
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'backfill' AND c.relname = 'version';

-- name: applied_version
SELECT max(version) FROM backfill.version;

-- name: job
-- One job by its name.  The newest columns by way of JSON: before a run there is nobody to upgrade an older ledger.
SELECT id, name, mode, state, phase, source, target, identity, spec, fingerprint, key_types, rows_estimated,
       barrier_snapshot, waits_for, limit_rows_per_s, error_code, error_message, error_hint, resumable, reason,
       refreeze, started_at, move_end, sweep_end,
       coalesce(to_jsonb(j) -> 'pace', '{}') AS pace, (to_jsonb(j) ->> 'heap_bytes')::bigint AS heap_bytes,
       coalesce(to_jsonb(j) -> 'ends', '{}') AS ends, to_jsonb(j) -> 'dual_write' AS dual_write,
       to_jsonb(j) ->> 'sweep_by' AS sweep_by, to_jsonb(j) -> 'target_mark' AS target_mark,
       (to_jsonb(j) ->> 'moved_at')::timestamptz AS moved_at,
       (to_jsonb(j) ->> 'verification_id')::bigint AS verification_id
  FROM backfill.job j
 WHERE name = $1;

-- name: job_names
-- Jobs that somebody could work on, oldest first.
SELECT name FROM backfill.job WHERE state IN ('planned', 'running', 'verifying') ORDER BY id;

-- name: create_job
-- A new job, planned, with its frozen identity, plan and fingerprint.
INSERT INTO backfill.job (name, mode, source, target, identity, spec, fingerprint, key_types, rows_estimated,
                          barrier_snapshot, move_end, heap_bytes, dual_write, target_mark)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
RETURNING id;

-- name: forget_tombstones
-- Those of before the job: the deletes are committed, and no chunk will see the rows.
DELETE FROM backfill.tombstone WHERE job = $1;

-- name: create_spans
-- Spans of one phase, from parallel arrays; bounds come as JSON arrays of texts.
-- The epochs of a verification's spans begin above those of all before it: their numbers may come again.
INSERT INTO backfill.span (job_id, id, phase, lo, hi, cursor, epoch, rows_estimated)
SELECT $1, coalesce((SELECT max(id) FROM backfill.span WHERE job_id = $1), 0) + n, $2,
       CASE WHEN lo <> 'null' THEN ARRAY(SELECT jsonb_array_elements_text(lo::jsonb)) END,
       ARRAY(SELECT jsonb_array_elements_text(hi::jsonb)),
       CASE WHEN lo <> 'null' THEN ARRAY(SELECT jsonb_array_elements_text(lo::jsonb)) END,
       coalesce((SELECT verification_id FROM backfill.job WHERE id = $1), 0) << 32, rows
  FROM unnest($3::text[], $4::text[], $5::double precision[]) WITH ORDINALITY AS planned (lo, hi, rows, n);

-- name: lock_job
-- Serialises what only one process may do at a time: start, phase change, split, finish.
SELECT state, phase, barrier_snapshot IS NOT NULL AS is_waiting FROM backfill.job WHERE id = $1 FOR NO KEY UPDATE;

-- name: spans
-- All spans of a job's phase, to check that they tile the key space.
SELECT id, lo, hi, cursor, epoch, rows, scanned, rows_estimated, worker, lease_until > clock_timestamp() AS leased
  FROM backfill.span
 WHERE job_id = $1 AND phase = $2
 ORDER BY id;

-- name: start
-- The barrier is behind us: the first chunk may be cut.
UPDATE backfill.job
   SET state = 'running', started_at = clock_timestamp(), waits_for = NULL, move_end = coalesce($2, move_end)
 WHERE id = $1 AND state = 'planned';

-- name: waits_for
UPDATE backfill.job SET waits_for = $2 WHERE id = $1 AND waits_for IS DISTINCT FROM $2;

-- name: claim
-- One free span of the current phase: unleased, expired, or leased further ahead than any honest lease can be.
WITH free AS (
    SELECT s.id, s.backends AS left_behind
      FROM backfill.span s
      JOIN backfill.job j ON j.id = s.job_id AND j.phase = s.phase AND j.state IN ('running', 'verifying')
                         AND j.barrier_snapshot IS NULL
     WHERE s.job_id = $1
       AND s.cursor IS DISTINCT FROM s.hi
       AND (s.lease_until IS NULL OR s.lease_until < clock_timestamp()
            OR s.lease_until > clock_timestamp() + 2 * make_interval(secs => $4))
     ORDER BY s.id
     LIMIT 1
       FOR UPDATE OF s SKIP LOCKED
)
UPDATE backfill.span s
   SET epoch = s.epoch + 1, worker = $2, backends = $3, lease_until = clock_timestamp() + make_interval(secs => $4)
  FROM free
 WHERE s.job_id = $1 AND s.id = free.id
RETURNING s.id, s.phase, s.lo, s.hi, s.cursor, s.epoch, s.rows, free.left_behind;

-- name: reclaim
-- The same span again after a lost connection, with the next epoch, so that whatever the lost one still does is fenced.
UPDATE backfill.span s
   SET epoch = s.epoch + 1, backends = $5, lease_until = clock_timestamp() + make_interval(secs => $6)
  FROM (SELECT backends FROM backfill.span WHERE job_id = $1 AND id = $2) before
 WHERE s.job_id = $1 AND s.id = $2 AND s.worker = $3 AND s.epoch = $4
RETURNING s.id, s.phase, s.lo, s.hi, s.cursor, s.epoch, s.rows, before.backends AS left_behind;

-- name: in_use
-- Which of the given server processes work under a live lease now, whatever lease they were written down for.
SELECT b.backend AS backend
  FROM jsonb_array_elements($2::jsonb) AS b (backend)
 WHERE EXISTS (SELECT FROM backfill.span s
                WHERE s.job_id = $1 AND s.lease_until > clock_timestamp()
                  AND s.backends @> jsonb_build_array(b.backend));

-- name: renew
-- The leases that this process holds, and no others: a span its worker gave up on must run out.  Rows that a chunk is
-- committing at this moment are skipped until next time.
WITH mine AS (
    SELECT s.job_id, s.id
      FROM backfill.span s
      JOIN unnest($2::integer[], $3::uuid[], $4::bigint[]) AS held (id, worker, epoch)
        ON s.id = held.id AND s.worker = held.worker AND s.epoch = held.epoch
     WHERE s.job_id = $1 AND s.lease_until IS NOT NULL
       FOR UPDATE OF s SKIP LOCKED
)
UPDATE backfill.span s
   SET lease_until = clock_timestamp() + make_interval(secs => $5)
  FROM mine
 WHERE s.job_id = mine.job_id AND s.id = mine.id
RETURNING s.id, s.worker, s.epoch;

-- name: release
-- Give a span back at once instead of letting its lease run out.
UPDATE backfill.span SET lease_until = NULL, worker = NULL, backends = '[]'
 WHERE job_id = $1 AND id = $2 AND worker = $3 AND epoch = $4;

-- name: reread
-- The span as it stands, for its holder: a thief may have lowered its upper bound.
SELECT id, phase, lo, hi, cursor, epoch, rows FROM backfill.span
 WHERE job_id = $1 AND id = $2 AND worker = $3 AND epoch = $4;

-- name: stands_as
-- Whether the span is still where a chunk of it began.
SELECT EXISTS (SELECT FROM backfill.span
                WHERE job_id = $1 AND id = $2 AND epoch = $3 AND cursor IS NOT DISTINCT FROM $4::text[] AND hi = $5::text[]);

-- name: running
-- Spans that somebody works on, for a worker that has none left.
SELECT id, phase, lo, hi, cursor, epoch, rows, greatest(0, rows_estimated - scanned) AS rows_left
  FROM backfill.span
 WHERE job_id = $1 AND phase = $2 AND cursor IS DISTINCT FROM hi AND lease_until > clock_timestamp();

-- name: steal
-- Halve a span, if it still stands where the thief saw it: the victim keeps (lo, cut], and its running chunk finds
-- another hi in the fence; the thief's part is born under its lease.
WITH cut AS (
    UPDATE backfill.span SET hi = $5, rows_estimated = $6
     WHERE job_id = $1 AND id = $2 AND hi = $4 AND cursor IS NOT DISTINCT FROM $3
    RETURNING phase, epoch
)
INSERT INTO backfill.span (job_id, id, phase, lo, hi, cursor, rows_estimated, epoch, worker, backends, lease_until)
SELECT $1, (SELECT max(id) + 1 FROM backfill.span WHERE job_id = $1), phase, $5, $4, $5, $7, ((epoch >> 32) << 32) + 1, $8, $9,
       clock_timestamp() + make_interval(secs => $10)
  FROM cut
RETURNING id, phase, lo, hi, cursor, epoch, rows;

-- name: unfinished
-- How many spans of the phase are not at their upper bound.
SELECT count(*) FROM backfill.span WHERE job_id = $1 AND phase = $2 AND cursor IS DISTINCT FROM hi;

-- name: change_phase
-- To a phase whose spans are planned when its barrier has passed.
UPDATE backfill.job SET phase = $3, barrier_snapshot = $4 WHERE id = $1 AND phase = $2;

-- name: open_phase
-- The barrier is behind us: the phase's spans are there, and may be claimed.
UPDATE backfill.job
   SET barrier_snapshot = NULL, waits_for = NULL, sweep_by = coalesce($3, sweep_by),
       ends = CASE WHEN $4::text[] IS NULL THEN ends - $2::text
                   ELSE ends || jsonb_build_object($2::text, to_jsonb($4::text[])) END
 WHERE id = $1 AND phase = $2;

-- name: barrier_passed
-- Nobody that was running when the bounds were frozen is left.
UPDATE backfill.job SET barrier_snapshot = NULL, waits_for = NULL WHERE id = $1;

-- name: finish
UPDATE backfill.job
   SET state = 'done', phase = 'end', finished_at = clock_timestamp(), waits_for = NULL, reason = NULL,
       moved_at = CASE WHEN state = 'running' THEN clock_timestamp() ELSE moved_at END
 WHERE id = $1 AND state IN ('running', 'verifying');

-- name: forget_written
-- The sweep is over: nobody asks any more whose a row is, nor what was deleted meanwhile.
WITH written AS (DELETE FROM backfill.written WHERE job_id = $1)
DELETE FROM backfill.tombstone WHERE job = (SELECT name FROM backfill.job WHERE id = $1);

-- name: fail
-- A guard stopped the job; the first reason stays.
UPDATE backfill.job
   SET state = 'failed', error_code = $2, error_message = $3, error_hint = $4, resumable = $5,
       finished_at = clock_timestamp()
 WHERE id = $1 AND state IN ('planned', 'running', 'paused', 'verifying');

-- name: apply_settings
UPDATE backfill.job SET spec = $2 WHERE id = $1 AND spec IS DISTINCT FROM $2;

-- name: apply_fingerprint
-- Of several processes that see it at once, one.
UPDATE backfill.job SET fingerprint = $2, refreeze = false WHERE id = $1 AND refreeze RETURNING id;

-- name: heartbeat
-- What the workers of this process are doing, for the status of others.
INSERT INTO backfill.worker (id, job_id, host, os_pid, rows_per_s, retries, waiting, waits)
SELECT w.id, $1, $2, $3, w.rows_per_s, w.retries, w.waiting, w.waits::jsonb
  FROM unnest($4::uuid[], $5::double precision[], $6::bigint[], $7::text[], $8::text[])
       AS w (id, rows_per_s, retries, waiting, waits)
ON CONFLICT (id) DO UPDATE
   SET seen_at = clock_timestamp(), rows_per_s = excluded.rows_per_s, retries = excluded.retries,
       waiting = excluded.waiting, waits = excluded.waits;

-- name: leave
-- The process ends: its workers no longer count, what they waited for stays.
UPDATE backfill.worker SET seen_at = '-infinity', rows_per_s = 0, waiting = '' WHERE id = ANY ($1::uuid[]);

-- name: status
-- The revision is the newest line of the history: it changes with every change of state, orders and settings.
SELECT s.*, (SELECT max(e.id) FROM backfill.event e WHERE e.job = s.job) AS revision,
       (SELECT j.spec ->> 'transform' FROM backfill.job j WHERE j.name = s.job) AS transform
  FROM backfill.status s WHERE s.job = $1;

-- name: status_all
SELECT * FROM backfill.status ORDER BY created_at;

-- name: page
-- $3 jobs in one of the states $2 (null: any) that are older than number $1 (null: all), the newest first.
SELECT s.*, chosen.id AS number, (SELECT max(e.id) FROM backfill.event e WHERE e.job = s.job) AS revision
  FROM (SELECT id, name FROM backfill.job
         WHERE ($1::bigint IS NULL OR id < $1) AND ($2::text[] IS NULL OR state = ANY ($2))
         ORDER BY id DESC LIMIT $3) chosen
  JOIN backfill.status s ON s.job = chosen.name
 ORDER BY chosen.id DESC;

-- name: several
-- These jobs as they are now.
SELECT s.*, (SELECT max(e.id) FROM backfill.event e WHERE e.job = s.job) AS revision
  FROM backfill.status s WHERE s.job = ANY ($1::text[]);

-- name: knows
SELECT EXISTS (SELECT FROM backfill.job WHERE name = $1);

-- name: remembers
SELECT EXISTS (SELECT FROM backfill.event WHERE job = $1);

-- name: revision
SELECT coalesce(max(id), 0) FROM backfill.event WHERE job = $1;

-- name: act_as
-- Who is said to have done what follows, in this session.
SELECT set_config('backfill.by', $1, false);

-- name: lock_named
-- One change at a time of a job that is known by its name.
SELECT id FROM backfill.job WHERE name = $1 FOR NO KEY UPDATE;

-- name: request
-- What a caller's own key stands for.
SELECT r.spec_hash, j.name AS job FROM backfill.request r JOIN backfill.job j ON j.id = r.job_id
 WHERE r.caller = $1 AND r.key = $2;

-- name: note_request
INSERT INTO backfill.request (caller, key, spec_hash, job_id) VALUES ($1, $2, $3, $4);

-- name: forget_requests
-- Nobody tries again after so many seconds.
DELETE FROM backfill.request WHERE at < clock_timestamp() - $1 * interval '1 second';

-- name: pause
SELECT backfill.pause($1, $2);

-- name: resume
SELECT backfill.resume($1, $2);

-- name: cancel
SELECT backfill.cancel($1, $2);

-- name: pacer
-- Take the pacer's lease if it is free, expired, or further ahead than any honest lease can be; renew it if it is ours;
-- and read what was published last, in that order.
WITH taken AS (
    UPDATE backfill.pacer
       SET process = $2, host = $3, os_pid = $4, lease_until = clock_timestamp() + make_interval(secs => $5),
           held_since = CASE WHEN process = $2 THEN held_since ELSE clock_timestamp() END
     WHERE job_id = $1
       AND (process = $2 OR process IS NULL OR lease_until IS NULL OR lease_until < clock_timestamp()
            OR lease_until > clock_timestamp() + 2 * make_interval(secs => $5))
    RETURNING decision, published_at, valid_until
), born AS (
    INSERT INTO backfill.pacer (job_id, process, host, os_pid, lease_until, held_since)
    SELECT id, $2, $3, $4, clock_timestamp() + make_interval(secs => $5), clock_timestamp()
      FROM backfill.job
     WHERE id = $1 AND NOT EXISTS (SELECT FROM backfill.pacer WHERE job_id = $1)
    ON CONFLICT (job_id) DO NOTHING
    RETURNING decision, published_at, valid_until
), seen AS (
    SELECT true AS is_mine, * FROM taken
    UNION ALL SELECT true, * FROM born
    UNION ALL SELECT false, decision, published_at, valid_until FROM backfill.pacer
               WHERE job_id = $1 AND NOT EXISTS (SELECT FROM taken)
)
SELECT is_mine, decision, extract(epoch FROM clock_timestamp() - published_at)::double precision AS age_s,
       CASE WHEN valid_until > clock_timestamp()
             AND valid_until < clock_timestamp() + 2 * (valid_until - published_at)
            THEN extract(epoch FROM valid_until - clock_timestamp()) END::double precision AS valid_for_s
  FROM seen;

-- name: publish_pace
-- `since`: when what decides, and whether it holds, became as it is, whoever has decided since then.
UPDATE backfill.pacer
   SET decision = $3::jsonb || jsonb_build_object('since', CASE
           WHEN decision -> 'held' = $3::jsonb -> 'held' AND decision -> 'leads' = $3::jsonb -> 'leads'
                AND valid_until > clock_timestamp() - interval '1 minute'
           THEN coalesce(decision -> 'since', to_jsonb(clock_timestamp()))
           ELSE to_jsonb(clock_timestamp()) END),
       published_at = clock_timestamp(), valid_until = clock_timestamp() + make_interval(secs => $4)
 WHERE job_id = $1 AND process = $2 AND lease_until > clock_timestamp()
RETURNING true;

-- name: leave_pacer
UPDATE backfill.pacer SET process = NULL, lease_until = NULL WHERE job_id = $1 AND process = $2;

-- name: report
-- Take the reporter's lease if it is free, expired, or further ahead than any honest lease can be; renew it if it is
-- ours.  Whoever does not get it changes nothing, and locks nothing.
WITH taken AS (
    UPDATE backfill.reporter
       SET process = $1, host = $2, os_pid = $3, lease_until = clock_timestamp() + make_interval(secs => $4),
           held_since = CASE WHEN process = $1 THEN held_since ELSE clock_timestamp() END
     WHERE process = $1 OR process IS NULL OR lease_until IS NULL OR lease_until < clock_timestamp()
        OR lease_until > clock_timestamp() + 2 * make_interval(secs => $4)
    RETURNING true AS is_mine
), born AS (
    INSERT INTO backfill.reporter (process, host, os_pid, lease_until, held_since)
    SELECT $1, $2, $3, clock_timestamp() + make_interval(secs => $4), clock_timestamp()
     WHERE NOT EXISTS (SELECT FROM backfill.reporter)
    ON CONFLICT (id) DO NOTHING
    RETURNING true AS is_mine
)
SELECT is_mine FROM taken UNION ALL SELECT is_mine FROM born;

-- name: leave_reporter
UPDATE backfill.reporter SET process = NULL, lease_until = NULL WHERE process = $1;

-- name: reported
-- At most $1 jobs: those that somebody could still work on, those that failed, and those that ended last.  $2: only
-- this one; null: all.
SELECT s.*,
       CASE WHEN s.state IN ('running', 'verifying')
            THEN (SELECT coalesce(sum(t.chunks), 0) FROM backfill.span t WHERE t.job_id = chosen.id) END::bigint AS steps
  FROM (SELECT id, name FROM backfill.job
         WHERE $2::bigint IS NULL OR id = $2
         ORDER BY CASE WHEN state IN ('planned', 'running', 'verifying') THEN 0
                       WHEN state IN ('paused', 'failed') THEN 1 ELSE 2 END,
                  finished_at DESC NULLS FIRST, id DESC
         LIMIT $1) chosen
  JOIN backfill.status s ON s.job = chosen.name
 ORDER BY s.created_at;

-- name: to_report
-- The same jobs, for when one of them keeps the others from being read.
SELECT id FROM backfill.job
 ORDER BY CASE WHEN state IN ('planned', 'running', 'verifying') THEN 0
               WHEN state IN ('paused', 'failed') THEN 1 ELSE 2 END,
          finished_at DESC NULLS FIRST, id DESC
 LIMIT $1;

-- name: lock_orders
-- One operator at a time.
SELECT id, pace, limit_rows_per_s FROM backfill.job WHERE name = $1 FOR NO KEY UPDATE;

-- name: order_reason
-- For the trigger that writes the history.
SELECT set_config('backfill.reason', $1, true);

-- name: order_pace
UPDATE backfill.job SET pace = $2, limit_rows_per_s = $3
 WHERE id = $1 AND (pace, limit_rows_per_s) IS DISTINCT FROM ($2::jsonb, $3::double precision);

-- name: tombstones
-- What the sweep has to look at: the numbers of this job's tombstones, and whether one stands for all keys.
SELECT min(id) AS first, max(id) AS last, count(*) AS rows, coalesce(bool_or(key IS NULL), false) AS truncated
  FROM backfill.tombstone WHERE job = $1;

-- name: begin_verification
-- A new verification of a job whose rows have all been moved; the spans of the one before are of no more use.
WITH begun AS (
    INSERT INTO backfill.verification (job_id, repair, settle_s, not_compared, target_mark, delete_extra)
    VALUES ($1, $2, $3, $4, $5, $6)
    RETURNING id
), cleared AS (
    DELETE FROM backfill.span
     WHERE job_id = $1 AND phase IN ('verify', 'extra', 'confirm', 'recheck')
), forgotten AS (
    DELETE FROM backfill.difference d USING backfill.verification v
     WHERE v.job_id = $1 AND d.verification_id = v.id
)
UPDATE backfill.job
   SET state = 'verifying', phase = 'verify', barrier_snapshot = '{}', waits_for = NULL,
       verification_id = begun.id, reason = NULL,
       ends = ends - ARRAY['verify', 'extra', 'confirm', 'recheck'],
       moved_at = coalesce(moved_at, finished_at, created_at) -- null where an older release has finished it
  FROM begun
 WHERE job.id = $1
RETURNING verification_id;

-- name: verification
SELECT id, repair, delete_extra, settle_s, who, started_at, finished_at, outcome, rows, suspects, mismatched, missing, extra,
       unsettled, repaired, columns, not_compared, truncated, target_mark
  FROM backfill.verification WHERE id = $1;

-- name: last_passed
-- The newest verification of a job that passed.
SELECT max(id) FROM backfill.verification WHERE job_id = $1 AND outcome = 'passed';

-- name: suspects
-- Numbers of the rows of a verification that are in one of these states.
SELECT min(id) AS first, max(id) AS last, count(*) AS rows
  FROM backfill.difference WHERE verification_id = $1 AND state = ANY ($2::text[]);

-- name: record_suspects
-- Rows that differ at the first look, and the chunk's fence, in one statement: no lock is held while anybody thinks.
-- Beyond so many of them nobody reads on, and only their number is kept.
WITH room AS (
    UPDATE backfill.verification SET suspects = suspects + cardinality($2::text[]),
           truncated = truncated OR suspects + cardinality($2::text[]) > $6
     WHERE id = $1 AND cardinality($2::text[]) > 0 AND outcome IS NULL
    RETURNING truncated
), added AS (
    INSERT INTO backfill.difference (verification_id, key, kind, source_mark, target_mark)
    SELECT $1, ARRAY(SELECT jsonb_array_elements_text(seen.key::jsonb)), seen.kind, seen.source_mark, seen.target_mark
      FROM room, unnest($2::text[], $3::text[], $4::text[], $5::text[]) AS seen (key, kind, source_mark, target_mark)
     WHERE NOT room.truncated
)
SELECT backfill.advance($7::bigint, $8::int,
                        -- No epoch at all for a verification that is over: whoever still works on it is fenced.
                        CASE WHEN EXISTS (SELECT FROM backfill.verification WHERE id = $1 AND outcome IS NULL)
                             THEN $9::bigint ELSE -1 END, $10::text[], $11::text[], $12::text[], $13::bigint,
                        $14::bigint, 0, false);

-- name: suspects_between
-- Those numbered ($2, $3] that are in one of the states $4, and how long ago they were seen.
SELECT id, key, kind, state, source_mark, target_mark,
       extract(epoch FROM clock_timestamp() - seen_at)::double precision AS age_s
  FROM backfill.difference
 WHERE verification_id = $1 AND id > coalesce($2::bigint, 0) AND id <= $3 AND state = ANY ($4::text[])
 ORDER BY id;

-- name: judge
-- What became of rows that were looked at again.
UPDATE backfill.difference d
   SET state = judged.state, kind = coalesce(judged.kind, d.kind), seen_at = clock_timestamp(),
       columns = CASE WHEN judged.kind IS NULL THEN d.columns
                      ELSE ARRAY(SELECT jsonb_array_elements_text(judged.columns::jsonb)) END
  FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) AS judged (id, state, kind, columns)
 WHERE d.id = judged.id;

-- name: differences
-- Rows that differ, for whoever may see keys: by kind, in an order that does not depend on who found them.
SELECT key, kind, state, columns FROM backfill.difference
 WHERE verification_id = $1 AND state IN ('confirmed', 'unsettled', 'repaired')
 ORDER BY array_position(ARRAY['changed', 'missing', 'extra'], kind), id LIMIT $2;

-- name: end_verification
-- Counts what was found, and says how it ended.
WITH counted AS (
    SELECT count(*) FILTER (WHERE kind = 'changed' AND state IN ('confirmed', 'repaired')) AS mismatched,
           count(*) FILTER (WHERE kind = 'missing' AND state IN ('confirmed', 'repaired')) AS missing,
           count(*) FILTER (WHERE kind = 'extra' AND state IN ('confirmed', 'repaired')) AS extra,
           count(*) FILTER (WHERE state IN ('unsettled', 'suspect')) AS unsettled,
           count(*) FILTER (WHERE state = 'repaired') AS repaired
      FROM backfill.difference WHERE verification_id = $2
), by_column AS (
    SELECT coalesce(jsonb_object_agg(name, n), '{}') AS columns
      FROM (SELECT name, count(*) AS n
              FROM backfill.difference d CROSS JOIN LATERAL unnest(d.columns) AS name
             WHERE d.verification_id = $2 AND d.kind = 'changed' AND d.state IN ('confirmed', 'repaired')
             GROUP BY name) c
), compared AS (
    SELECT coalesce(sum(rows), 0)::bigint AS rows FROM backfill.span WHERE job_id = $1 AND phase = 'verify'
)
UPDATE backfill.verification v
   SET finished_at = clock_timestamp(), rows = compared.rows, mismatched = c.mismatched, missing = c.missing,
       extra = c.extra, unsettled = c.unsettled, repaired = c.repaired, columns = by_column.columns,
       outcome = CASE WHEN c.mismatched + c.missing + c.extra = c.repaired AND c.unsettled = 0 AND NOT v.truncated
                      THEN 'passed' ELSE 'mismatch' END
  FROM counted c, by_column, compared
 WHERE v.id = $2 AND v.outcome IS NULL;

-- name: touched
-- The job wrote to its tables after its end: what was proved before says nothing of that.
UPDATE backfill.job SET moved_at = clock_timestamp() WHERE id = $1;

-- name: quarantined
SELECT id, key, error_class, sqlstate, attempts, first_at, last_at FROM backfill.quarantine
 WHERE job_id = $1 AND id > $3 ORDER BY id LIMIT $2;

-- name: set_aside
-- One row into quarantine and the cursor past it, behind the fence.
SELECT backfill.set_aside($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: quarantined_by_sqlstate
SELECT sqlstate, count(*) AS rows FROM backfill.quarantine WHERE job_id = $1 GROUP BY sqlstate ORDER BY 2 DESC, 1;

-- name: quarantined_ids
SELECT id FROM backfill.quarantine WHERE job_id = $1 ORDER BY id;

-- name: take_quarantined
-- One row to try again; whoever else wants to waits, and finds it gone if it was written.
SELECT key FROM backfill.quarantine WHERE job_id = $1 AND id = $2 FOR UPDATE;

-- name: note_written
-- This transaction writes for the job, outside of any chunk.  Returns it as a row's xmin shows it.
INSERT INTO backfill.written (job_id, xid)
VALUES ($1, (pg_current_xact_id()::text::numeric % 4294967296)::bigint)
RETURNING xid;

-- name: note_written_again
-- The job may have come to its end, and forgotten them.
INSERT INTO backfill.written (job_id, xid) SELECT $1, unnest($2::bigint[]);

-- name: forget_some_written
-- A job that still has its sweep before it needs them.
DELETE FROM backfill.written w
 WHERE w.job_id = $1 AND w.xid = ANY ($2::bigint[])
   AND NOT EXISTS (SELECT FROM backfill.job j WHERE j.id = $1 AND j.phase IN ('move', 'sweep'));

-- name: will_sweep
-- True while the sweep's horizon lies ahead: it is drawn when the last span of the move is finished.
SELECT j.phase = 'move' AND j.state <> 'cancelled' AND EXISTS (SELECT FROM backfill.span s
                                     WHERE s.job_id = j.id AND s.phase = 'move' AND s.cursor IS DISTINCT FROM s.hi)
  FROM backfill.job j WHERE j.id = $1;

-- name: quarantined_count
SELECT quarantined FROM backfill.job WHERE id = $1;

-- name: let_go
-- Out of quarantine, because the row is written now or because a person said so.
WITH gone AS (DELETE FROM backfill.quarantine WHERE job_id = $1 AND id = ANY ($2::bigint[]) RETURNING 1)
SELECT count(*) FROM gone;

-- name: failed_again
UPDATE backfill.quarantine SET attempts = attempts + 1, last_at = clock_timestamp(), error_class = $3, sqlstate = $4
 WHERE job_id = $1 AND id = $2;

-- name: pause_running
-- An administrator ended one of our server processes while the server stayed up: that is an order to stop.
UPDATE backfill.job SET state = 'paused', reason = $2 WHERE id = $1 AND state IN ('running', 'verifying');

-- name: history
-- The last so many of so long; null: all.
SELECT id, at, who, what, detail
  FROM (SELECT * FROM backfill.event
         WHERE job = $1 AND ($2::double precision IS NULL OR at > clock_timestamp() - $2 * interval '1 second')
         ORDER BY id DESC LIMIT $3) newest
 ORDER BY id;

-- name: history_after
-- What came after a line, oldest first.  Of the jobs $1, numbers above those of $2.
SELECT e.id, e.job, e.at, e.who, e.what, e.detail
  FROM unnest($1::text[], $2::bigint[]) AS seen (job, id)
 CROSS JOIN LATERAL (SELECT * FROM backfill.event e WHERE e.job = seen.job AND e.id > seen.id ORDER BY e.id LIMIT $3) e
 ORDER BY e.id;

-- name: record
-- Behind the job's lock, as every change of a job: lines of one job become visible in the order of their numbers, and
-- whoever reads on from the last one that he saw misses none.
WITH locked AS MATERIALIZED (SELECT 1 FROM backfill.job WHERE name = $1 FOR NO KEY UPDATE)
INSERT INTO backfill.event (job, what, detail)
SELECT $1, $2, $3 FROM (SELECT count(*) FROM locked) there;

-- name: record_aside
-- The same, of somebody who may not lock jobs.
INSERT INTO backfill.event (job, what, detail) VALUES ($1, $2, $3);

-- name: record_of
-- The same, of a job by its number.
INSERT INTO backfill.event (job, what, detail) SELECT name, $2, $3 FROM backfill.job WHERE id = $1;

-- name: forget
-- The job and everything of it but its history.
WITH gone AS (DELETE FROM backfill.job WHERE name = $1 RETURNING id),
     rows AS (DELETE FROM backfill.written WHERE job_id IN (SELECT id FROM gone)),
     keys AS (DELETE FROM backfill.tombstone WHERE job = $1)
SELECT count(*) FROM gone;

-- name: drop_all
DROP SCHEMA backfill CASCADE;
