-- Made by `python -m bronze_assets access`.
-- What policies.sql, masks.sql and row_filters.sql call.

CREATE OR REPLACE FUNCTION `dev`.`inventory_bronze`.`bz_mask_medium`(value STRING)
RETURNS STRING
COMMENT 'Personal data of class Medium: as stored for those who may see it, else ***.'
RETURN CASE
  WHEN is_account_group_member('bronze_platform') OR is_account_group_member('bronze_privacy_officers') OR is_account_group_member('bronze_engineers') THEN value
  WHEN value IS NOT NULL THEN '***'
END;

CREATE OR REPLACE FUNCTION `dev`.`inventory_bronze`.`bz_mask_high`(value STRING)
RETURNS STRING
COMMENT 'Personal data of class High: as stored for those who may see it, else ***.'
RETURN CASE
  WHEN is_account_group_member('bronze_platform') OR is_account_group_member('bronze_privacy_officers') THEN value
  WHEN value IS NOT NULL THEN '***'
END;

CREATE OR REPLACE FUNCTION `dev`.`inventory_bronze`.`bz_row_shown`(record_status STRING)
RETURNS BOOLEAN
COMMENT 'Whether a row is shown: ERASED ones only to those who answer for erasures.'
RETURN record_status <> 'ERASED' OR is_account_group_member('bronze_platform') OR is_account_group_member('bronze_privacy_officers') OR is_account_group_member('bronze_engineers');
