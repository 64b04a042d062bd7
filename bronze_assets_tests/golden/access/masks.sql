-- Made by `python -m bronze_assets access`.
-- Column masks, table by table. INSTEAD of policies.sql, and not on tables that the platform loads: with these
-- nobody can read the history of a table or travel in time, the platform included.

ALTER TABLE `dev`.`inventory_bronze`.`bz_suppliers` ALTER COLUMN `contact_number` SET MASK `dev`.`inventory_bronze`.`bz_mask_medium`;
ALTER TABLE `dev`.`inventory_bronze`.`bz_suppliers` ALTER COLUMN `_rescued_data` SET MASK `dev`.`inventory_bronze`.`bz_mask_high`;
ALTER TABLE `dev`.`inventory_bronze`.`bz_suppliers_quarantine` ALTER COLUMN `raw_row` SET MASK `dev`.`inventory_bronze`.`bz_mask_high`;
ALTER TABLE `dev`.`inventory_bronze`.`bz_customers` ALTER COLUMN `customer_name` SET MASK `dev`.`inventory_bronze`.`bz_mask_high`;
ALTER TABLE `dev`.`inventory_bronze`.`bz_customers` ALTER COLUMN `email` SET MASK `dev`.`inventory_bronze`.`bz_mask_high`;
ALTER TABLE `dev`.`inventory_bronze`.`bz_customers` ALTER COLUMN `_rescued_data` SET MASK `dev`.`inventory_bronze`.`bz_mask_high`;
ALTER TABLE `dev`.`inventory_bronze`.`bz_customers_quarantine` ALTER COLUMN `raw_row` SET MASK `dev`.`inventory_bronze`.`bz_mask_high`;
