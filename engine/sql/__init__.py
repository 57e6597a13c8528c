"""Text of statements: identifiers, literals, key predicates.  No I/O.

Owns everything that turns names and values into SQL.  Refuses to know connections, asyncio, what a job is, and whether
a statement would succeed.

Invariants:

* An identifier is always quoted, and comes from the catalogue.
* A value travels as a parameter.  Only where a statement takes none (COPY) is it rendered, by ``literals``, which is
  fuzzed against the server's own ``quote_literal``.
* Text written by a user enters a statement only after ``read_expression`` has found it to be exactly one expression.
  That stops accidents; what stops attackers is the privileges of the role the statement runs under.
"""

from __future__ import annotations

from engine.sql.expressions import Expression, ExpressionError, read_expression
from engine.sql.identifiers import ident, idents, qualified
from engine.sql.literals import literal, text_array

__all__ = ["Expression", "ExpressionError", "ident", "idents", "literal", "qualified", "read_expression", "text_array"]
