"""Bronze Assets: bronze Delta tables as Dagster assets, computed by PySpark.

Words, the same in code, docs, errors and the UI:

- **table**: a `BronzeTable`, the declaration of one bronze table.
- **partition**: the Dagster partition key, a day or an hour of *arrival*.
- **batch**: the rows that one load brings together, under one `batch_id`, `<partition key>/<number>`.
- **source state**: what a batch reads: one exported snapshot of the database, or one list of claimed files.
- **capture**: writes the committed changes of PostgreSQL tables as files into the **landing zone**.
- **feed**: files as a table's source; the **ledger** says what happened to each, loaded ones go to the **archive**.
- **row outcome**: every row read is exactly one of loaded, quarantined, duplicate, unchanged, erased.
- **conservation**: read = loaded + quarantined + duplicates + unchanged + erased, per batch.
- **quarantine**: the rows that could not be loaded, with their reasons.
- **record**: `LoadRecord`, what one load did; source of the audit row, the metadata and the check results.

Map, in the order a row meets it: `settings` and `engine` give the session, `catalog` says what is ingested (`table` is
its vocabulary), `capture` brings changes into the landing zone, `sources` reads tables and files, `quality` judges
rows, `frames` (with `snapshot_frames` and `file_frames`) compares them with what is there, `load` (with `snapshot_load`
and `file_load`) finds what is outstanding and `attempt` commits it on a `workbench`, `batches` remembers how far it
came, `schema_versions` which columns have joined (`classification`: and been declared), `lakehouse` writes (on
`control_tables` and `private_tables`; nothing else writes Delta) into a `storage`: a folder, or a catalog
(`catalog_storage`), where `leases` say who is at work. `audit` records, `access` says who may see what on Unity
Catalog (`access_evidence`: who did), `privacy` protects, reveals and erases (keys from `vaults`), `orchestration` shows
it in Dagster (`definitions` wires that) and takes it to Databricks (`shipping` says what goes there, `databricks_job`
how), `environment_file` has the settings of an environment, `doctor` looks whether one can work, `operations` is what
the people on duty run and read (`thresholds` say how old a table may get, `page` how reports look, `runbook` what to
do), `demo` tries it all out.
"""
