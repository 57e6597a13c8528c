"""Carries the planner's questions to a server and the answers back."""

from __future__ import annotations

from typing import TypeVar

from engine.db import Connection
from engine.model import Key, TableName
from engine.plan.questions import Answer, Steps
from engine.sql.questions import read, statement

Result = TypeVar("Result")


async def answer(steps: Steps[Result], connection: Connection, table: TableName, key: Key) -> Result:
    """Run a planning routine to its end, each of its questions by one statement on ``connection``."""
    reply: Answer = None
    while True:
        try:
            question = steps.send(reply)  # sending None to a fresh generator starts it
        except StopIteration as end:
            result: Result = end.value
            return result
        asked = statement(question, table, key)
        reply = read(question, [tuple(row) for row in await connection.fetch(asked.sql, *asked.args)])
