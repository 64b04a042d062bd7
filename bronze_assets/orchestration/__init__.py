"""The tables as Dagster sees them: assets, checks, freshness, jobs, schedules, and the runs of this process.

What does not belong here: how rows are read, judged or written. Only this package and `definitions` import dagster.
"""
