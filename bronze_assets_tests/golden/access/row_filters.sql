-- Made by `python -m bronze_assets access`.
-- Row filters, table by table. They go with masks.sql, and the same holds for them.

ALTER TABLE `dev`.`inventory_bronze`.`bz_suppliers` SET ROW FILTER `dev`.`inventory_bronze`.`bz_row_shown` ON (`record_status`);
ALTER TABLE `dev`.`inventory_bronze`.`bz_customers` SET ROW FILTER `dev`.`inventory_bronze`.`bz_row_shown` ON (`record_status`);
