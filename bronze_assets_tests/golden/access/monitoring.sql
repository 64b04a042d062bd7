-- Made by `python -m bronze_assets access`.
-- The view `bz_monitoring` of each schema: today's loads of each table, from its audit log. The
-- dashboard of deploy/bundle shows it. To be run by the service principal that owns the schemas.

CREATE OR REPLACE VIEW `dev`.`inventory_bronze`.`bz_monitoring`
COMMENT 'Loads of today by table: records, average quality, last load, minutes since, failed attempts.'
AS SELECT table_name,
  sum(record_count) AS records,
  round(sum(data_quality_avg_score * record_count) / nullif(sum(CASE WHEN data_quality_avg_score IS NOT NULL THEN record_count END), 0), 2) AS average_quality,
  max(CASE WHEN status = 'SUCCESS' THEN processing_end_time END) AS last_load,
  timestampdiff(MINUTE, max(CASE WHEN status = 'SUCCESS' THEN processing_end_time END), current_timestamp()) AS minutes_since,
  count_if(status = 'SUCCESS') AS loads,
  count_if(status = 'FAILED') AS failed_attempts
FROM `dev`.`inventory_bronze`.`bz_audit_log`
WHERE processing_end_time >= date_trunc('DAY', current_timestamp())
GROUP BY table_name;

CREATE OR REPLACE VIEW `dev`.`manufacturing_bronze`.`bz_monitoring`
COMMENT 'Loads of today by table: records, average quality, last load, minutes since, failed attempts.'
AS SELECT table_name,
  sum(record_count) AS records,
  round(sum(data_quality_avg_score * record_count) / nullif(sum(CASE WHEN data_quality_avg_score IS NOT NULL THEN record_count END), 0), 2) AS average_quality,
  max(CASE WHEN status = 'SUCCESS' THEN processing_end_time END) AS last_load,
  timestampdiff(MINUTE, max(CASE WHEN status = 'SUCCESS' THEN processing_end_time END), current_timestamp()) AS minutes_since,
  count_if(status = 'SUCCESS') AS loads,
  count_if(status = 'FAILED') AS failed_attempts
FROM `dev`.`manufacturing_bronze`.`bz_audit_log`
WHERE processing_end_time >= date_trunc('DAY', current_timestamp())
GROUP BY table_name;
