output "BRONZE_CATALOG" {
  description = "For the settings of the Dagster deployment."
  value       = var.catalog
}

output "BRONZE_SQL_WAREHOUSE" {
  description = "For the settings of the Dagster deployment."
  value       = module.compute.warehouse_id
}

output "files_path" {
  description = "The volume below which landing zone and archive lie, as Databricks shows it."
  value       = module.unity_catalog.files_path
}

output "key_vault" {
  description = "Where the master key is to be put: BRONZE_MASTER_KEY is azure-keyvault://<this>/<secret>."
  value       = var.key_vault
}

output "secret_scope" {
  description = "The Key Vault as Databricks jobs see it."
  value       = module.key_vault.scope
}
