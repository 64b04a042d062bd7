output "BRONZE_CATALOG" {
  description = "catalog of the settings file, or this variable without one."
  value       = var.catalog
}

output "BRONZE_SQL_WAREHOUSE" {
  description = "sql_warehouse of the settings file, or this variable without one."
  value       = module.compute.warehouse_id
}

output "files_path" {
  description = "The volume below which landing and archive of the settings file lie."
  value       = module.unity_catalog.files_path
}

output "key_vault" {
  description = "Where source URL and master key are to be put."
  value       = var.key_vault
}

output "secret_scope" {
  description = "The Key Vault as Databricks sees it: databricks.secret_scope of the settings file, and in its places of secrets."
  value       = module.key_vault.scope
}

output "staging_volume" {
  description = "databricks.staging_volume of the settings file."
  value       = module.unity_catalog.staging_path
}

output "jobs_policy_id" {
  description = "databricks.cluster.policy_id of the settings file, for long jobs; it has a node type and no pool."
  value       = module.compute.jobs_policy_id
}

output "pooled_jobs_policy_id" {
  description = "databricks.cluster.policy_id of the settings file, for short jobs, with instance_pool_id."
  value       = module.compute.pooled_jobs_policy_id
}

output "instance_pool_id" {
  description = "databricks.cluster.instance_pool_id of the settings file."
  value       = module.compute.instance_pool_id
}

output "node_type" {
  description = "databricks.cluster.node_type_id of the settings file, with jobs_policy_id."
  value       = var.node_type
}
