"""Dashboards and what goes with them: made by ``grafana.build``, drawn for the documents by ``grafana.pictures``."""
