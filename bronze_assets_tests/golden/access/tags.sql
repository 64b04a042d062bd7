-- Made by `python -m bronze_assets access`.
-- The class of every column with personal data, and of every table. policies.sql goes by these tags.

ALTER TABLE `dev`.`inventory_bronze`.`bz_products` SET TAGS ('personal_data' = 'None', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_products_quarantine` SET TAGS ('personal_data' = 'None', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_suppliers` SET TAGS ('personal_data' = 'Medium', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_suppliers_quarantine` SET TAGS ('personal_data' = 'High', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_warehouses` SET TAGS ('personal_data' = 'None', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_warehouses_quarantine` SET TAGS ('personal_data' = 'None', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_inventory` SET TAGS ('personal_data' = 'None', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_inventory_quarantine` SET TAGS ('personal_data' = 'None', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_orders` SET TAGS ('personal_data' = 'None', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_orders_quarantine` SET TAGS ('personal_data' = 'None', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_order_details` SET TAGS ('personal_data' = 'None', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_order_details_quarantine` SET TAGS ('personal_data' = 'None', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_shipments` SET TAGS ('personal_data' = 'None', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_shipments_quarantine` SET TAGS ('personal_data' = 'None', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_returns` SET TAGS ('personal_data' = 'None', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_returns_quarantine` SET TAGS ('personal_data' = 'None', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_stock_levels` SET TAGS ('personal_data' = 'None', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_stock_levels_quarantine` SET TAGS ('personal_data' = 'None', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_customers` SET TAGS ('personal_data' = 'High', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`inventory_bronze`.`bz_customers_quarantine` SET TAGS ('personal_data' = 'High', 'source_system' = 'PostgreSQL_DE');
ALTER TABLE `dev`.`manufacturing_bronze`.`bz_sensor_data` SET TAGS ('personal_data' = 'None', 'source_system' = 'Manufacturing_Files');
ALTER TABLE `dev`.`manufacturing_bronze`.`bz_sensor_data_quarantine` SET TAGS ('personal_data' = 'None', 'source_system' = 'Manufacturing_Files');
ALTER TABLE `dev`.`manufacturing_bronze`.`bz_equipment_logs` SET TAGS ('personal_data' = 'None', 'source_system' = 'Manufacturing_Files');
ALTER TABLE `dev`.`manufacturing_bronze`.`bz_equipment_logs_quarantine` SET TAGS ('personal_data' = 'None', 'source_system' = 'Manufacturing_Files');
ALTER TABLE `dev`.`manufacturing_bronze`.`bz_quality_metrics` SET TAGS ('personal_data' = 'None', 'source_system' = 'Manufacturing_Files');
ALTER TABLE `dev`.`manufacturing_bronze`.`bz_quality_metrics_quarantine` SET TAGS ('personal_data' = 'None', 'source_system' = 'Manufacturing_Files');
ALTER TABLE `dev`.`inventory_bronze`.`bz_suppliers` ALTER COLUMN `supplier_name` SET TAGS ('personal_data' = 'Low');
ALTER TABLE `dev`.`inventory_bronze`.`bz_suppliers` ALTER COLUMN `contact_number` SET TAGS ('personal_data' = 'Medium');
ALTER TABLE `dev`.`inventory_bronze`.`bz_suppliers_quarantine` ALTER COLUMN `raw_row` SET TAGS ('personal_data' = 'High');
ALTER TABLE `dev`.`inventory_bronze`.`bz_customers` ALTER COLUMN `customer_name` SET TAGS ('personal_data' = 'High');
ALTER TABLE `dev`.`inventory_bronze`.`bz_customers` ALTER COLUMN `email` SET TAGS ('personal_data' = 'High');
ALTER TABLE `dev`.`inventory_bronze`.`bz_customers_quarantine` ALTER COLUMN `raw_row` SET TAGS ('personal_data' = 'High');
ALTER TABLE `dev`.`inventory_bronze`.`bz_suppliers` ALTER COLUMN `record_status` SET TAGS ('erasure' = 'record_status');
ALTER TABLE `dev`.`inventory_bronze`.`bz_customers` ALTER COLUMN `record_status` SET TAGS ('erasure' = 'record_status');
