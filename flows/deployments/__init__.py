"""The same functions as Prefect flows, and the process that serves them; the only place that imports Prefect."""
