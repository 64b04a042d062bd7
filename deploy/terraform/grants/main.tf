# The declared grants. Apply it before the first load, after it, and after each deployment: a table has grants from the
# apply on that finds it there.

# Others may have rights on the catalog, so only ours are set.
resource "databricks_grant" "catalog" {
  for_each = var.catalog_grants

  catalog    = var.catalog
  principal  = each.key
  privileges = each.value
}

# The schemas are ours as a whole: what is not declared is taken away.
resource "databricks_grants" "schema" {
  for_each = var.schema_grants

  schema = "${var.catalog}.${each.key}"

  dynamic "grant" {
    for_each = each.value

    content {
      principal  = grant.key
      privileges = grant.value
    }
  }
}

data "databricks_tables" "there" {
  for_each = var.schema_grants

  catalog_name = var.catalog
  schema_name  = each.key
}

locals {
  there = toset(flatten([for tables in data.databricks_tables.there : tables.ids]))
  declared = merge([
    for schema, tables in var.table_grants : {
      for table, grants in tables : "${var.catalog}.${schema}.${table}" => grants
    }
  ]...)
}

resource "databricks_grants" "table" {
  for_each = { for name, grants in local.declared : name => grants if contains(local.there, name) }

  table = each.key

  dynamic "grant" {
    for_each = each.value

    content {
      principal  = grant.key
      privileges = grant.value
    }
  }
}

output "tables_without_grants" {
  description = "Declared tables that no load has made yet; apply again when it has."
  value       = sort(tolist(setsubtract(keys(local.declared), local.there)))
}
