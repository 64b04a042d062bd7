-- Made by `python -m bronze_assets access`.
-- What `python -m bronze_assets access --evidence` asks, to be reviewed or run by hand, as one who may see
-- all grants of the catalog (its owner, or an admin of the metastore) and with SELECT on system.access. `:since` and
-- `:until` are timestamps; events come late, so let `:since` lie a day before the last run: what is met again has the same
-- event_id.

SELECT grantee, table_catalog, table_schema, table_name, privilege_type, inherited_from
FROM `dev`.`information_schema`.table_privileges
WHERE table_schema IN ('inventory_bronze', 'manufacturing_bronze')
UNION ALL
SELECT grantee, catalog_name, schema_name, NULL, privilege_type, inherited_from
FROM `dev`.`information_schema`.schema_privileges
WHERE schema_name IN ('inventory_bronze', 'manufacturing_bronze')
UNION ALL
SELECT grantee, catalog_name, NULL, NULL, privilege_type, inherited_from
FROM `dev`.`information_schema`.catalog_privileges
WHERE catalog_name = 'dev';

SELECT event_id, event_time, user_identity, identity_metadata, source_ip_address, action_name, request_params, response
FROM system.access.audit
WHERE event_date BETWEEN date_sub(to_date(:since), 1) AND date_add(to_date(:until), 1)
AND event_time >= :since AND event_time < :until
AND service_name = 'unityCatalog' AND action_name = 'generateTemporaryTableCredential'
AND lower(request_params['table_full_name']) IN (
  'dev.inventory_bronze.bz_suppliers',
  'dev.inventory_bronze.bz_suppliers_quarantine',
  'dev.inventory_bronze.bz_customers',
  'dev.inventory_bronze.bz_customers_quarantine',
  'dev.inventory_bronze.bz_subject_keys',
  'dev.inventory_bronze.bz_token_vault',
  'dev.inventory_bronze.bz_tombstones'
);

SELECT event_id, event_time, created_by, entity_type, statement_id, source_table_full_name, source_column_name
FROM system.access.column_lineage
WHERE event_date BETWEEN date_sub(to_date(:since), 1) AND date_add(to_date(:until), 1)
AND event_time >= :since AND event_time < :until
AND lower(source_table_full_name) IN (
  'dev.inventory_bronze.bz_suppliers',
  'dev.inventory_bronze.bz_suppliers_quarantine',
  'dev.inventory_bronze.bz_customers',
  'dev.inventory_bronze.bz_customers_quarantine',
  'dev.inventory_bronze.bz_subject_keys',
  'dev.inventory_bronze.bz_token_vault',
  'dev.inventory_bronze.bz_tombstones'
);
