output "warehouse_id" {
  description = "The SQL warehouse."
  value       = databricks_sql_endpoint.this.id
}

output "jobs_policy_id" {
  description = "The policy of long jobs."
  value       = databricks_cluster_policy.jobs.id
}

output "pooled_jobs_policy_id" {
  description = "The policy of short jobs, from the pool."
  value       = databricks_cluster_policy.pooled_jobs.id
}

output "instance_pool_id" {
  description = "The pool of short jobs."
  value       = databricks_instance_pool.jobs.id
}
