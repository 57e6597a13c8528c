"""An Airflow operator that has a backfill daemon do a job, and holds no worker's place while it lasts.

Submit, follow, decide:

* ``execute`` submits the spec and defers.  The same spec is the same job: a task that was lost, cleared or retried
  finds what it began, and moves nothing twice.
* ``BackfillTrigger`` waits for the job's end, for hours or days, through restarts of the daemon and of the triggerer.
* ``finish`` asks the gate.  The task succeeds only when the old side may be given up; what only a person can mend (a
  job that failed or was cancelled, a gate that is not ready) fails it without retries.

Put this file beside your DAGs, and ``backfill-engine`` into Airflow's environment.  Workers and triggerers find the
token in the file that ``token_file`` names, or in BACKFILL_TOKEN; it is in no DAG, trigger or log.  Airflow 3.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from engine.client import AsyncClient, Client
from engine.errors import BackfillError
from engine.wire.shapes import Job

FINAL = ("done", "failed", "cancelled")
TRY_AGAIN = (1, 5, 75)
"""Exit codes of errors that may pass: unexpected ones, nobody answers or lets us in, busy."""


class BackfillOperator(BaseOperator):
    """One backfill, from its spec to an open gate."""

    template_fields: Sequence[str] = ("daemon", "spec")
    ui_color = "#cfe8d5"

    def __init__(
        self,
        *,
        daemon: str,
        spec: Mapping[str, Any],
        token_file: str | None = None,
        ca: str | None = None,
        **arguments: Any,
    ) -> None:
        """``daemon``: unix:///run/backfill/backfill.sock or https://backfill:8471; ``spec``: as in a spec file, with
        connections of the operator in place of connection strings.  ``ca``: who vouches for the daemon.
        """
        super().__init__(**arguments)
        self.daemon = daemon
        self.spec = dict(spec)
        self.token_file = token_file
        self.ca = ca

    def execute(self, context: Any) -> dict[str, Any]:  # noqa: ARG002 - Airflow's signature
        """Begin the job or find it, and leave this worker to others while it runs."""
        with self._daemon() as daemon:
            job = daemon.submit(self.spec)
            self.log.info("job %s is %s", job.job, job.state)
            return self._decided(daemon, job)

    def finish(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - Airflow's signature
        """The trigger saw the end of the job, or could no longer look: either way the daemon is asked again."""
        if "trouble" in event:
            self.log.warning("the trigger could not wait: %s", event["trouble"])
        with self._daemon() as daemon:
            return self._decided(daemon, daemon.job(event["job"], connection=event["connection"]))

    def _decided(self, daemon: Client, job: Job) -> dict[str, Any]:
        """What the next tasks may know.  Defers while the job runs, raises unless the gate is ready at its end."""
        if job.state not in FINAL:
            self.defer(
                trigger=BackfillTrigger(
                    daemon=self.daemon, job=job.job, connection=job.connection, token_file=self.token_file, ca=self.ca
                ),
                method_name="finish",
            )
        if job.state != "done":
            why = f": {job.error.message or job.error.code}; {job.error.hint or ''}" if job.error else ""
            raise AirflowFailException(f"job {job.job} is {job.state}{why}")
        gate = daemon.gate(job.job, connection=job.connection)
        for check in gate.checks:
            self.log.info("%s  %s: %s", "yes" if check.ok else "NO", check.name, check.detail)
        if not gate.ready:
            missing = "; ".join(f"{check.name}: {check.detail}" for check in gate.checks if not check.ok)
            raise AirflowFailException(f"the gate of job {job.job} is not ready: {missing}")
        return {"job": job.job, "rows": job.rows_done, "verified": job.verified}

    @contextmanager
    def _daemon(self) -> Iterator[Client]:
        """A daemon that is away is a matter for Airflow's retries; what it refuses, it would refuse again."""
        with Client(self.daemon, token_file=self.token_file, ca=self.ca) as daemon:
            try:
                yield daemon
            except BackfillError as error:
                if error.exit_code in TRY_AGAIN:
                    raise
                raise AirflowFailException(f"{error} ({error.hint})" if error.hint else str(error)) from error


class BackfillTrigger(BaseTrigger):
    """Waits for the end of a job.  Any triggerer may run it, and begin it again."""

    def __init__(
        self, *, daemon: str, job: str, connection: str, token_file: str | None = None, ca: str | None = None
    ) -> None:
        super().__init__()
        self.daemon = daemon
        self.job = job
        self.connection = connection
        self.token_file = token_file
        self.ca = ca

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What the database of Airflow keeps of it: no token."""
        names = ("daemon", "job", "connection", "token_file", "ca")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event, at the end of the job."""
        try:
            async with AsyncClient(self.daemon, token_file=self.token_file, ca=self.ca) as daemon:
                job = await daemon.wait(self.job, until="final", connection=self.connection)
        except BackfillError as error:
            yield TriggerEvent({"job": self.job, "connection": self.connection, "trouble": str(error)})
        else:
            yield TriggerEvent({"job": job.job, "connection": job.connection, "state": str(job.state)})
