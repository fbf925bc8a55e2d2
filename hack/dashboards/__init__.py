"""The dashboards of manifests/grafana, written once and in one style.

`python -m hack.dashboards` writes them; `python -m tests.observability.pictures` draws what they
look like. Queries use what docs/reference/metrics.md promises, and no recording rule, so that a
board works wherever the agents are scraped.
"""
