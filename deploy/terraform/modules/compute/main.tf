locals {
  runtime = {
    "spark_version"         = { type = "fixed", value = var.spark_version }
    "data_security_mode"    = { type = "fixed", value = "SINGLE_USER", hidden = true }
    "cluster_type"          = { type = "fixed", value = "job" }
    "autoscale.min_workers" = { type = "range", minValue = 1, maxValue = var.max_workers, defaultValue = 1 }
    "autoscale.max_workers" = { type = "range", minValue = 1, maxValue = var.max_workers, defaultValue = min(2, var.max_workers) }
  }
  custom_tags = { for name, value in var.tags : "custom_tags.${name}" => { type = "fixed", value = value } }
}

# Job clusters end with their job. This one is for long jobs: spot machines, and on-demand ones where there are none.
resource "databricks_cluster_policy" "jobs" {
  name        = "bronze-jobs-${var.environment}"
  description = "Job clusters of the bronze platform: spot with fallback, autoscaling."
  definition = jsonencode(merge(
    local.runtime,
    local.custom_tags,
    {
      "node_type_id"        = { type = "fixed", value = var.node_type }
      "driver_node_type_id" = { type = "fixed", value = var.node_type, hidden = true }
      "instance_pool_id"    = { type = "forbidden", hidden = true }
    },
    var.policy_overrides,
  ))
}

# For short jobs, which would wait longer for machines than they run. Pools know no fallback from spot, so its machines
# are on demand.
resource "databricks_instance_pool" "jobs" {
  instance_pool_name                    = "bronze-jobs-${var.environment}"
  node_type_id                          = var.node_type
  min_idle_instances                    = 0
  max_capacity                          = var.concurrent_jobs * (var.max_workers + 1)
  idle_instance_autotermination_minutes = 15
  preloaded_spark_versions              = [var.spark_version]
  custom_tags                           = var.tags
}

resource "databricks_cluster_policy" "pooled_jobs" {
  name        = "bronze-pooled-jobs-${var.environment}"
  description = "Short job clusters of the bronze platform, from the pool."
  definition = jsonencode(merge(local.runtime, {
    "instance_pool_id"        = { type = "fixed", value = databricks_instance_pool.jobs.id }
    "driver_instance_pool_id" = { type = "fixed", value = databricks_instance_pool.jobs.id, hidden = true }
  }))
}

# For people who look into something. It ends by itself.
resource "databricks_cluster_policy" "interactive" {
  name        = "bronze-interactive-${var.environment}"
  description = "Clusters of engineers: small, and gone after half an hour without work."
  definition = jsonencode(merge(
    local.runtime,
    local.custom_tags,
    {
      "cluster_type"            = { type = "fixed", value = "all-purpose" }
      "node_type_id"            = { type = "fixed", value = var.node_type }
      "driver_node_type_id"     = { type = "fixed", value = var.node_type, hidden = true }
      "autotermination_minutes" = { type = "range", minValue = 10, maxValue = 60, defaultValue = 30 }
      # Filters and masks are applied for the person who asks.
      "data_security_mode" = { type = "fixed", value = "USER_ISOLATION", hidden = true }
    },
    var.policy_overrides,
  ))
  max_clusters_per_user = 1
}

resource "databricks_sql_endpoint" "this" {
  name                      = "bronze-${var.environment}"
  cluster_size              = var.warehouse_size
  min_num_clusters          = 1
  max_num_clusters          = 1
  auto_stop_mins            = 10
  warehouse_type            = "PRO"
  enable_serverless_compute = true
}

resource "databricks_permissions" "job_policies" {
  for_each = {
    jobs        = databricks_cluster_policy.jobs.id
    pooled_jobs = databricks_cluster_policy.pooled_jobs.id
  }

  cluster_policy_id = each.value

  access_control {
    group_name       = var.roles.platform
    permission_level = "CAN_USE"
  }
}

resource "databricks_permissions" "interactive" {
  cluster_policy_id = databricks_cluster_policy.interactive.id

  access_control {
    group_name       = var.roles.engineers
    permission_level = "CAN_USE"
  }
}

resource "databricks_permissions" "pool" {
  instance_pool_id = databricks_instance_pool.jobs.id

  access_control {
    group_name       = var.roles.platform
    permission_level = "CAN_ATTACH_TO"
  }
}

resource "databricks_permissions" "warehouse" {
  sql_endpoint_id = databricks_sql_endpoint.this.id

  dynamic "access_control" {
    for_each = toset(values(var.roles))

    content {
      group_name       = access_control.value
      permission_level = "CAN_USE"
    }
  }
}
