"""The demo: an embedded PostgreSQL, sample data for the ten tables, and the report that every local load ends with.

Nothing outside this package imports it, but `python -m bronze_assets load`, which prints the same report.
"""
