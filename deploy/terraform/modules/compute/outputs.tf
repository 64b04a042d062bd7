output "warehouse_id" {
  description = "The SQL warehouse."
  value       = databricks_sql_endpoint.this.id
}
