output "files_path" {
  description = "The volume below which landing zone and archive lie."
  value       = databricks_volume.files.volume_path
}

output "staging_path" {
  description = "The volume for what Pipes stages."
  value       = databricks_volume.staging.volume_path
}
