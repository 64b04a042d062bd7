output "tables_url" {
  description = "Where managed tables lie."
  value       = trimsuffix(databricks_external_location.this["tables"].url, "/")
}

output "files_url" {
  description = "Where files arrive and are archived."
  value       = trimsuffix(databricks_external_location.this["files"].url, "/")
}
