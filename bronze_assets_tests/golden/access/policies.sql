-- Made by `python -m bronze_assets access`.
-- Masks and row filters for the tables that the platform loads: by tag, with the platform exempt, because a
-- load reads the history of its tables, which Unity Catalog refuses to everybody whom a mask or row filter concerns.
-- The tags must be governed tags of the account.

CREATE OR REPLACE POLICY `bz_mask_medium`
ON SCHEMA `dev`.`inventory_bronze`
COMMENT 'Masks personal data of class Medium.'
COLUMN MASK `dev`.`inventory_bronze`.`bz_mask_medium`
TO `account users`
EXCEPT `bronze_platform`
FOR TABLES
MATCH COLUMNS has_tag_value('personal_data', 'Medium') AS masked
ON COLUMN masked;

CREATE OR REPLACE POLICY `bz_mask_high`
ON SCHEMA `dev`.`inventory_bronze`
COMMENT 'Masks personal data of class High.'
COLUMN MASK `dev`.`inventory_bronze`.`bz_mask_high`
TO `account users`
EXCEPT `bronze_platform`
FOR TABLES
MATCH COLUMNS has_tag_value('personal_data', 'High') AS masked
ON COLUMN masked;

CREATE OR REPLACE POLICY `bz_row_shown`
ON SCHEMA `dev`.`inventory_bronze`
COMMENT 'Hides rows of erased persons.'
ROW FILTER `dev`.`inventory_bronze`.`bz_row_shown`
TO `account users`
EXCEPT `bronze_platform`
FOR TABLES
MATCH COLUMNS has_tag_value('erasure', 'record_status') AS status
USING COLUMNS (status);
