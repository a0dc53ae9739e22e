"""What people run: recipes, the command line, Prefect deployments, the report and the HTTP API."""
