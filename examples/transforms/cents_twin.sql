-- The same by SQL.  It rounds a fraction of a cent, where the transform rejects the row.
UPDATE orders SET amount_cents = (amount * 100)::bigint WHERE amount_cents IS NULL AND amount IS NOT NULL;
