-- The expand step for new-table.yaml: the new table, and dual-write by trigger.
--
--   psql "$SOURCE_DSN" -v ON_ERROR_STOP=1 -f examples/new-table.sql
--
-- The trigger is what makes the backfill correct: from its COMMIT on every change reaches both tables, so the job only
-- has to bring over what was there before.

BEGIN;

CREATE TABLE public.orders_v2 (
    id           bigint      PRIMARY KEY,
    customer_id  integer     NOT NULL,
    status       text        NOT NULL,
    amount_cents bigint      NOT NULL,
    note         text,
    created_at   timestamptz NOT NULL
);

CREATE FUNCTION public.orders_dual_write() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND OLD.id <> NEW.id) THEN
        DELETE FROM public.orders_v2 WHERE id = OLD.id;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        -- For an update too: the row may not have been copied yet, and then it need not be.
        INSERT INTO public.orders_v2 (id, customer_id, status, amount_cents, note, created_at)
        VALUES (NEW.id, NEW.customer_id, NEW.status, (NEW.amount * 100)::bigint, NEW.note, NEW.created_at)
        ON CONFLICT (id) DO UPDATE
           SET customer_id = excluded.customer_id, status = excluded.status, amount_cents = excluded.amount_cents,
               note = excluded.note, created_at = excluded.created_at;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER orders_dual_write AFTER INSERT OR UPDATE OR DELETE ON public.orders
    FOR EACH ROW EXECUTE FUNCTION public.orders_dual_write();

COMMIT;
