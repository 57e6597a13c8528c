"""Dashboards and what goes with them: made by ``grafana.boards``, drawn for the documents by ``grafana.pictures``."""
