resource "databricks_catalog" "this" {
  count = var.create_catalog ? 1 : 0

  name           = var.catalog
  comment        = "Bronze tables of one environment."
  storage_root   = "${var.tables_url}/${var.catalog}"
  isolation_mode = "ISOLATED"

  lifecycle {
    prevent_destroy = true
  }
}

resource "databricks_schema" "bronze" {
  for_each = toset(var.schemas)

  catalog_name = var.create_catalog ? databricks_catalog.this[0].name : var.catalog
  name         = each.key
  comment      = "Made by Terraform; its tables are made by the first loads."
  storage_root = "${var.tables_url}/${var.catalog}/${each.key}"
  # The maintenance job does it, with the tables' 30 days.
  enable_predictive_optimization = "DISABLE"

  lifecycle {
    prevent_destroy = true
  }
}

# A schema of its own, which nobody but the platform may use: files hold personal data as the source gave them.
resource "databricks_schema" "files" {
  catalog_name = var.create_catalog ? databricks_catalog.this[0].name : var.catalog
  name         = "bronze_files"
  comment      = "Files before and after they are loaded."

  lifecycle {
    prevent_destroy = true
  }
}

# One volume for both, so that a loaded file is moved into the archive within one file system.
resource "databricks_volume" "files" {
  catalog_name     = databricks_schema.files.catalog_name
  schema_name      = databricks_schema.files.name
  name             = "files"
  volume_type      = "EXTERNAL"
  storage_location = "${var.files_url}/${var.catalog}"
  comment          = "landing/ and archive/."

  lifecycle {
    prevent_destroy = true
  }
}

# What Pipes stages: code, and the messages of runs. Apart from files, so that whoever may stage need not read them.
resource "databricks_volume" "staging" {
  catalog_name     = databricks_schema.files.catalog_name
  schema_name      = databricks_schema.files.name
  name             = "staging"
  volume_type      = "EXTERNAL"
  storage_location = "${var.files_url}/${var.catalog}_staging"
  comment          = "Code and messages of loads that Pipes starts."

  lifecycle {
    prevent_destroy = true
  }
}

resource "databricks_grants" "files_schema" {
  schema = databricks_schema.files.id

  grant {
    principal  = var.platform
    privileges = ["USE_SCHEMA"]
  }
}

resource "databricks_grants" "files_volume" {
  volume = databricks_volume.files.id

  grant {
    principal  = var.platform
    privileges = ["READ_VOLUME", "WRITE_VOLUME"]
  }
}

resource "databricks_grants" "staging_volume" {
  volume = databricks_volume.staging.id

  grant {
    principal  = var.platform
    privileges = ["READ_VOLUME", "WRITE_VOLUME"]
  }
}
