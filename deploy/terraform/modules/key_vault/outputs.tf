output "scope" {
  description = "The secret scope."
  value       = databricks_secret_scope.this.name
}
