"""The catalogue queries of ``inspect``, for PostgreSQL 14 and newer.

Each takes the table's OID as ``$1`` (bigint, since asyncpg knows it without asking) and answers with text, numbers and
booleans only.  ``leaves`` stands for the table itself, or all its leaf partitions where it is partitioned.
"""

from __future__ import annotations

from typing import Final

from engine.db.server import Server

NAMED_TABLE: Final = """
SELECT c.oid::int8 AS oid, n.nspname::text AS schema, c.relname::text AS name
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""

# Along the search_path, as the user's own session would look.  Nothing but this is asked under that path, whose
# operators may be anybody's.
VISIBLE_TABLE: Final = "SELECT pg_catalog.to_regclass($1)::pg_catalog.oid::pg_catalog.int8"

TABLE_OF_OID: Final = """
SELECT c.oid::int8 AS oid, n.nspname::text AS schema, c.relname::text AS name
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = $1::oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""

TABLE_NAMES: Final = """
SELECT n.nspname::text AS schema, c.relname::text AS name
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
 ORDER BY 1, 2
 LIMIT 1000
"""

_LEAVES: Final = """
WITH leaves AS (
  SELECT $1::oid AS oid FROM pg_class WHERE oid = $1::oid AND relkind <> 'p'
  UNION ALL
  SELECT relid::oid FROM pg_partition_tree($1::oid::regclass) WHERE isleaf AND relid::oid <> $1::oid
)"""

# The table, what it is a partition of, and its own partitions.
_FAMILY: Final = """
WITH family AS (
  SELECT $1::oid AS oid
  UNION SELECT relid::oid FROM pg_partition_ancestors($1::oid::regclass)
  UNION SELECT relid::oid FROM pg_partition_tree($1::oid::regclass)
)"""


def table_query(server: Server) -> str:
    """The table as a whole: kind, sizes, flags, our rights."""
    maintain = "has_table_privilege(c.oid, 'MAINTAIN')" if server.capabilities.maintain_privilege else "false"
    return f"""{_LEAVES},
sizes AS (
  SELECT count(*) AS leaves,
         sum(greatest(l.reltuples, 0)) AS rows,
         bool_and(l.reltuples < 0) AS unknown,
         sum(pg_relation_size(l.oid))::int8 AS heap,
         sum(coalesce(pg_total_relation_size(nullif(l.reltoastrelid, 0)), 0))::int8 AS toast,
         sum(pg_indexes_size(l.oid))::int8 AS indexes,
         bool_or(l.relpersistence = 'u') AS unlogged,
         min(coalesce(substring(array_to_string(l.reloptions, ' ') FROM 'fillfactor=([0-9]+)')::int, 100))
           AS fillfactor,
         array_agg(l.relname::text ORDER BY l.relname) FILTER (WHERE l.relkind = 'f') AS foreign_tables,
         array_agg(l.relname::text ORDER BY l.relname) FILTER (
           -- As the server reads a Boolean: any beginning of off, false or no.
           WHERE array_to_string(l.reloptions, ' ') ~* 'autovacuum_enabled=(of|f|n|0)') AS autovacuum_off,
         -- What an UPDATE or DELETE of a published table is refused without.
         array_agg(l.relname::text ORDER BY l.relname) FILTER (
           WHERE l.relreplident <> 'f' AND NOT EXISTS (
             SELECT FROM pg_index i
              WHERE i.indrelid = l.oid AND i.indisvalid AND i.indimmediate
                AND CASE l.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
           )) AS without_identity
    FROM pg_class l JOIN leaves USING (oid)
)
SELECT c.relkind::text AS kind,
       CASE WHEN sizes.unlogged THEN 'u' ELSE c.relpersistence::text END AS persistence,
       coalesce(pg_relation_filenode(c.oid), 0)::int8 AS relfilenode,
       CASE WHEN coalesce(sizes.unknown, true) THEN -1 ELSE sizes.rows END::float8 AS rows,
       coalesce(sizes.heap, 0) AS heap, coalesce(sizes.toast, 0) AS toast, coalesce(sizes.indexes, 0) AS indexes,
       coalesce(sizes.fillfactor, 100) AS fillfactor,
       row_security_active(c.oid) AS row_security,
       (SELECT count(*) FROM pg_inherits i JOIN pg_class k ON k.oid = i.inhrelid
         WHERE i.inhparent = c.oid AND NOT k.relispartition)::int4 AS children,
       EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid AND NOT c.relispartition) AS is_child,
       CASE WHEN c.relkind = 'p' THEN sizes.leaves ELSE 0 END::int4 AS partitions,
       pg_get_userbyid(c.relowner)::text AS owner,
       array_remove(ARRAY[
         CASE WHEN has_table_privilege(c.oid, 'SELECT') THEN 'SELECT' END,
         CASE WHEN has_table_privilege(c.oid, 'INSERT') THEN 'INSERT' END,
         CASE WHEN has_table_privilege(c.oid, 'UPDATE') THEN 'UPDATE' END,
         CASE WHEN has_table_privilege(c.oid, 'DELETE') THEN 'DELETE' END,
         CASE WHEN {maintain} THEN 'MAINTAIN' END], NULL) AS privileges,
       has_schema_privilege(c.relnamespace, 'USAGE') AS schema_usage,
       CASE WHEN c.relkind = 'p' THEN coalesce(sizes.foreign_tables, '{{}}') ELSE '{{}}' END AS foreign_partitions,
       coalesce(sizes.autovacuum_off, '{{}}') AS autovacuum_off,
       coalesce(sizes.without_identity, '{{}}') AS without_identity,
       coalesce((SELECT CASE p.partstrat WHEN 'l' THEN 'list' WHEN 'r' THEN 'range' ELSE 'hash' END
                   FROM pg_partitioned_table p WHERE p.partrelid = c.oid), '') AS partitioned_by,
       EXISTS (SELECT FROM pg_partitioned_table p
                WHERE p.partrelid = c.oid AND p.partdefid <> 0) AS has_default_partition,
       coalesce((SELECT t.spcname::text FROM pg_tablespace t JOIN pg_database d ON d.datname = current_database()
                  WHERE t.oid = coalesce(nullif(c.reltablespace, 0), d.dattablespace)
                    AND c.relkind <> 'p'), '') AS tablespace,
       ARRAY(SELECT r.rulename::text FROM pg_rewrite r
              WHERE r.ev_class IN (SELECT oid FROM leaves UNION SELECT c.oid)
                AND r.rulename <> '_RETURN' AND r.ev_enabled <> 'D' ORDER BY 1) AS rules
  FROM pg_class c, sizes
 WHERE c.oid = $1::oid
"""


COLUMNS: Final = """
SELECT a.attname::text AS name, a.attnum::int4 AS number, a.atttypid::int8 AS type_oid,
       format_type(a.atttypid, a.atttypmod) AS type_name,
       a.attnotnull AND NOT EXISTS (
           SELECT FROM pg_constraint k  -- since 18 a NOT NULL may be NOT VALID, with NULLs there already
            WHERE k.conrelid = a.attrelid AND k.contype = 'n' AND NOT k.convalidated AND k.conkey = ARRAY[a.attnum]
       ) AS not_null, a.attidentity::text AS identity, a.attgenerated::text AS generated,
       (a.atthasdef AND a.attgenerated = '') AS has_default,
       a.attcollation::int8 AS collation
  FROM pg_attribute a
 WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum
"""

# Every type that the columns' types are made of: elements, base types, subtypes of ranges, columns of composites.
TYPES: Final = """
WITH RECURSIVE parts AS (
  SELECT unnest($1::int8[])::oid AS oid
  UNION
  SELECT part.oid
    FROM parts
    JOIN pg_type t ON t.oid = parts.oid
    LEFT JOIN pg_range r ON r.rngtypid = t.oid OR r.rngmultitypid = t.oid
    CROSS JOIN LATERAL (
      SELECT t.typelem AS oid WHERE t.typelem <> 0
      UNION ALL SELECT t.typbasetype WHERE t.typbasetype <> 0
      UNION ALL SELECT r.rngsubtype WHERE r.rngsubtype IS NOT NULL
      UNION ALL SELECT a.atttypid FROM pg_attribute a
                 WHERE a.attrelid = nullif(t.typrelid, 0) AND a.attnum > 0 AND NOT a.attisdropped
    ) part
)
SELECT t.oid::int8 AS oid, t.typname::text AS name, format_type(t.oid, -1) AS full_name, t.typtype::text AS kind,
       (t.typelem <> 0 AND t.typlen = -1 AND t.typcategory = 'A') AS is_array,
       t.typelem::int8 AS element, t.typbasetype::int8 AS base,
       coalesce(format_type(nullif(t.typbasetype, 0), t.typtypmod), '') AS declared_base,
       coalesce(r.rngsubtype, 0)::int8 AS subtype,
       ARRAY(SELECT a.atttypid::int8 FROM pg_attribute a
              WHERE a.attrelid = nullif(t.typrelid, 0) AND a.attnum > 0 AND NOT a.attisdropped) AS attributes,
       (t.typsend <> 0 AND t.typreceive <> 0) AS binary_io,
       ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) AS labels
  FROM parts
  JOIN pg_type t ON t.oid = parts.oid
  LEFT JOIN pg_range r ON r.rngtypid = t.oid OR r.rngmultitypid = t.oid
"""


def collations_query(server: Server) -> str:
    """The collations of ``$1`` (OIDs), with the default collation resolved to what the database was created with."""
    major = server.major
    locale = "c.colllocale" if major >= 17 else "c.colliculocale" if major >= 15 else "NULL"
    default_locale = "d.datlocale" if major >= 17 else "d.daticulocale" if major >= 15 else "NULL"
    rules = "c.collicurules" if major >= 16 else "NULL"
    default_rules = "d.daticurules" if major >= 16 else "NULL"
    provider = "d.datlocprovider" if major >= 15 else "'c'"
    # Before 15 the default collation has no version of its own: that of another libc collation is the library's.
    version = (
        "pg_database_collation_actual_version(d.oid)"
        if major >= 15
        else "(SELECT max(pg_collation_actual_version(l.oid)) FROM pg_collation l WHERE l.collprovider = 'c')"
    )
    return f"""
SELECT c.oid::int8 AS oid, quote_ident(n.nspname) || '.' || quote_ident(c.collname) AS name,
       v.provider::text AS provider, v.locale::text AS locale, v.rules::text AS rules, v.version::text AS version,
       c.collisdeterministic AS deterministic, pg_encoding_to_char(d.encoding)::text AS encoding
  FROM pg_collation c
  JOIN pg_namespace n ON n.oid = c.collnamespace
  JOIN pg_database d ON d.datname = current_database()
  CROSS JOIN LATERAL (
    SELECT {provider}::"char" AS provider, coalesce({default_locale}, d.datcollate) AS locale,
           {default_rules} AS rules, {version} AS version
     WHERE c.collprovider = 'd'
    UNION ALL
    SELECT c.collprovider, coalesce({locale}, c.collcollate), {rules}, pg_collation_actual_version(c.oid)
     WHERE c.collprovider <> 'd'
  ) v
 WHERE c.oid = ANY ($1::int8[]::oid[])
"""


INDEXES: Final = """
SELECT ic.relname::text AS name, ic.oid::int8 AS oid,
       ARRAY(SELECT coalesce(a.attname::text, '')
               FROM generate_series(1, i.indnkeyatts) AS k(place)
               LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.place - 1]
                                       AND i.indkey[k.place - 1] <> 0
              ORDER BY k.place) AS columns,
       i.indisunique AS unique, i.indisprimary AS primary, i.indimmediate AS immediate,
       i.indpred IS NOT NULL AS partial,
       (i.indisvalid AND i.indisready AND i.indislive) AS valid, am.amname::text AS method,
       ARRAY(SELECT i.indoption[k.place - 1] & 1 = 1 FROM generate_series(1, i.indnkeyatts) AS k(place)
              ORDER BY k.place) AS descending,
       -- The operator class that ORDER BY would use, or the index is in another order than the rows.
       NOT EXISTS (
         SELECT FROM generate_series(1, i.indnkeyatts) AS k(place)
           JOIN pg_opclass o ON o.oid = i.indclass[k.place - 1]
           LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.place - 1]
           LEFT JOIN pg_type t ON t.oid = a.atttypid
          WHERE NOT o.opcdefault
             OR i.indcollation[k.place - 1] <> coalesce(a.attcollation, 0)
             OR EXISTS (SELECT FROM pg_opclass d
                         WHERE d.opcmethod = o.opcmethod AND d.opcdefault AND d.oid <> o.oid
                           AND d.opcintype = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END)
       ) AS default_opclass,
       -- An index of a constraint depends on the constraint, and names its columns itself; expressions and predicates
       -- are known by what they depend on.
       ARRAY(SELECT a.attname::text FROM pg_attribute a
              WHERE a.attrelid = i.indrelid AND a.attnum > 0
                AND (a.attnum = ANY (i.indkey::int2[])
                     OR EXISTS (SELECT FROM pg_depend d
                                 WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                                   AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid
                                   AND d.refobjsubid = a.attnum))
              ORDER BY a.attnum) AS reads,
       i.indisexclusion AS exclusion,
       (SELECT sum(pg_relation_size(p.relid)) FROM pg_partition_tree(ic.oid) p)::int8 AS tree_size,
       pg_relation_size(ic.oid)::int8 AS size
  FROM pg_index i
  JOIN pg_class ic ON ic.oid = i.indexrelid
  JOIN pg_am am ON am.oid = ic.relam
 WHERE i.indrelid = $1::oid
 ORDER BY i.indisprimary DESC, ic.relname
"""

# Triggers of a partitioned table have clones on the partitions; a partition may have some of its own besides.
TRIGGERS: Final = f"""{_LEAVES}
SELECT t.tgname::text AS name, t.tgenabled::text IN ('O', 'A') AS enabled, t.tgtype::int4 AS bits,
       pg_get_triggerdef(t.oid) AS definition,
       ARRAY(SELECT a.attname::text FROM pg_attribute a
              WHERE a.attrelid = t.tgrelid AND a.attnum = ANY (t.tgattr::int2[]) ORDER BY a.attnum) AS of_columns
  FROM pg_trigger t
 WHERE t.tgrelid IN (SELECT oid FROM leaves UNION SELECT $1::oid) AND NOT t.tgisinternal AND t.tgparentid = 0
 ORDER BY t.tgrelid, t.tgname
"""

FOREIGN_KEYS: Final = """
SELECT k.conname::text AS name, k.conrelid = $1::oid AS outgoing,
       ARRAY(SELECT a.attname::text FROM unnest(CASE WHEN k.conrelid = $1::oid THEN k.conkey ELSE k.confkey END)
                    WITH ORDINALITY AS u(attnum, place)
               JOIN pg_attribute a ON a.attrelid = $1::oid AND a.attnum = u.attnum ORDER BY u.place) AS columns,
       n.nspname::text AS other_schema, o.relname::text AS other_name,
       -- Led by one of the columns, and not leaving out any row that points somewhere.
       EXISTS (SELECT FROM pg_index i
                 JOIN pg_class ic ON ic.oid = i.indexrelid
                 JOIN pg_am am ON am.oid = ic.relam
                WHERE i.indrelid = k.conrelid AND i.indisvalid AND am.amname IN ('btree', 'hash')
                  AND i.indkey[0] = ANY (k.conkey)
                  AND (i.indpred IS NULL OR pg_get_expr(i.indpred, i.indrelid)
                       ~ '^\\(("([^"]|"")+"|[^ "]+) IS NOT NULL\\)$')
       ) AS indexed
  FROM pg_constraint k
  JOIN pg_class o ON o.oid = CASE WHEN k.conrelid = $1::oid THEN k.confrelid ELSE k.conrelid END
  JOIN pg_namespace n ON n.oid = o.relnamespace
 WHERE k.contype = 'f' AND k.conparentid = 0 AND (k.conrelid = $1::oid OR k.confrelid = $1::oid)
 ORDER BY outgoing DESC, k.conname
"""


def checks_query(server: Server) -> str:
    """CHECK and NOT NULL constraints that are enforced from now on, and that nobody has held the old rows against."""
    enforced = "AND k.conenforced" if server.major >= 18 else ""
    return f"""{_LEAVES}
SELECT DISTINCT ON (k.conname) k.conname::text AS name,
       ARRAY(SELECT a.attname::text FROM pg_attribute a
              WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey) ORDER BY a.attnum) AS columns
  FROM pg_constraint k
 WHERE k.conrelid IN (SELECT oid FROM leaves UNION SELECT $1::oid)
   AND k.contype IN ('c', 'n') AND NOT k.convalidated {enforced}
 ORDER BY k.conname
"""


def publications_query(server: Server) -> str:
    """The publications that the table, a part of it or what it is a part of belongs to."""
    of_schemas = (
        "OR EXISTS (SELECT FROM pg_publication_namespace n JOIN pg_class c ON c.relnamespace = n.pnnspid"
        " WHERE n.pnpubid = p.oid AND c.oid IN (SELECT oid FROM family))"
        if server.major >= 15
        else ""
    )
    return f"""{_FAMILY}
SELECT p.pubname::text AS name, p.pubinsert AS insert, p.pubupdate AS update, p.pubdelete AS delete
  FROM pg_publication p
 WHERE EXISTS (SELECT FROM pg_class c WHERE c.oid = $1::oid AND c.relpersistence = 'p' AND c.relkind IN ('r', 'p'))
   AND (p.puballtables
        OR EXISTS (SELECT FROM pg_publication_rel r
                    WHERE r.prpubid = p.oid AND r.prrelid IN (SELECT oid FROM family))
        {of_schemas})
 ORDER BY 1
"""


# An identity asks its sequence by itself; nextval() in a default is asked as whoever inserts.
CLOSED_SEQUENCES: Final = """
SELECT format('%I.%I', n.nspname, s.relname) AS name, array_agg(DISTINCT a.attname::text) AS columns
  FROM pg_attrdef d
  JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
  JOIN pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid AND p.refclassid = 'pg_class'::regclass
  JOIN pg_class s ON s.oid = p.refobjid
  JOIN pg_namespace n ON n.oid = s.relnamespace
 WHERE d.adrelid = $1::oid
   -- In this order: to ask for the rights on a table in this way is an error.
   AND CASE WHEN s.relkind = 'S' THEN NOT has_sequence_privilege(s.oid, 'USAGE, UPDATE') ELSE false END
 GROUP BY 1
 ORDER BY 1
"""

SUBSCRIPTIONS: Final = f"""{_FAMILY}
SELECT DISTINCT s.subname::text AS name
  FROM pg_subscription_rel r JOIN pg_subscription s ON s.oid = r.srsubid
 WHERE r.srrelid IN (SELECT oid FROM family)
 ORDER BY 1
"""


def outdated_collations_query(server: Server) -> str:
    """Indexed columns whose collation is not of the version any more that its indexes were built with."""
    recorded = "d.datcollversion" if server.major >= 15 else "NULL"
    actual = "pg_database_collation_actual_version(d.oid)" if server.major >= 15 else "NULL"
    return f"""
SELECT a.attname::text AS name
  FROM pg_attribute a
  JOIN pg_collation c ON c.oid = a.attcollation
  JOIN pg_database d ON d.datname = current_database()
 WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped
   AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND a.attnum = ANY (i.indkey::int2[]))
   AND CASE WHEN c.collprovider = 'd' THEN {recorded} <> {actual}
            ELSE c.collversion <> pg_collation_actual_version(c.oid) END
 ORDER BY a.attnum
"""


# Each leaf's file: a rewrite or TRUNCATE gives it another one.
RELFILENODES: Final = f"""{_LEAVES}
SELECT format('%s.%s', n.nspname, c.relname) AS name, coalesce(pg_relation_filenode(c.oid), 0)::int8 AS relfilenode
  FROM leaves JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace
 ORDER BY 1
"""

INDEX_DEFINITIONS: Final = """
SELECT c.relname::text AS name,
       pg_get_indexdef(i.indexrelid) || CASE WHEN i.indisvalid THEN '' ELSE ' (invalid)' END AS definition
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
 WHERE i.indrelid = $1::oid
 ORDER BY 1
"""
