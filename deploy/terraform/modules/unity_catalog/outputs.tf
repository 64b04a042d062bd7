output "files_path" {
  description = "The volume below which landing zone and archive lie."
  value       = databricks_volume.files.volume_path
}
