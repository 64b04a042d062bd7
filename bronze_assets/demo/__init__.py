"""The demo: an embedded PostgreSQL, sample data, files and changes, and the report that every local load ends with.

Nothing outside this package imports it, but `python -m bronze_assets load`, which prints the same report.
"""
