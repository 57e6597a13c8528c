"""All routes of the API."""

from __future__ import annotations

from typing import Final

from engine.service.routes import evidence, jobs, orders, pace, page, planning, quarantine, recent, service, watching
from engine.service.routing import Route

ROUTES: Final[tuple[Route, ...]] = (
    *page.ROUTES,
    *service.ROUTES,
    *jobs.ROUTES,
    *orders.ROUTES,
    *pace.ROUTES,
    *watching.ROUTES,
    *recent.ROUTES,
    *quarantine.ROUTES,
    *evidence.ROUTES,
    *planning.ROUTES,
)
