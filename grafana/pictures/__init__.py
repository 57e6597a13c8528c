"""Draws the dashboards for the documents, from a recorded Prometheus: what Grafana would show, without a Grafana.

``values`` formats numbers and colours as Grafana does, ``ask`` evaluates the panels of a committed dashboard, ``draw``
draws them where the dashboard has them, and ``stage`` is the scene that is recorded: five jobs, one of each kind.
"""
