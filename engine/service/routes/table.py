"""All routes of the API."""

from __future__ import annotations

from typing import Final

from engine.service.routes import jobs, orders, service
from engine.service.routing import Route

ROUTES: Final[tuple[Route, ...]] = (*service.ROUTES, *jobs.ROUTES, *orders.ROUTES)
