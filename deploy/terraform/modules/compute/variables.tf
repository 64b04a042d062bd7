variable "environment" {
  description = "dev, qa or prod."
  type        = string
}

variable "node_type" {
  description = "Node type of job clusters and of the pool."
  type        = string
}

variable "spark_version" {
  description = "Databricks Runtime. Policies on tags need 16.4 or newer."
  type        = string
  default     = "17.3.x-scala2.13"
}

variable "max_workers" {
  description = "Most workers of a job cluster."
  type        = number

  validation {
    condition     = var.max_workers >= 1
    error_message = "a job cluster scales from one worker upwards."
  }
}

variable "concurrent_jobs" {
  description = "How many jobs the pool has machines for: as many as Dagster runs at a time, and maintenance."
  type        = number
  default     = 4
}

variable "warehouse_size" {
  description = "Size of the SQL warehouse."
  type        = string
}

variable "roles" {
  description = "Role → account group that works with the tables."
  type        = map(string)
}

variable "policy_overrides" {
  description = "What the cloud's own attributes must be: spot with fallback to on demand."
  type        = map(object({ type = string, value = any }))
}

variable "tags" {
  description = "Custom tags of clusters."
  type        = map(string)
}
