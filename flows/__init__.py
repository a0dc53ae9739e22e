"""What people run: recipes, the command line, Prefect deployments and the report."""
