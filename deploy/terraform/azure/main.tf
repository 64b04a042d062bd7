# Everything of one environment on Azure but grants on catalog, schemas and tables: those are in ../grants, because they
# are applied again when loads have made tables. Masks, row filters and tags are SQL (`python -m bronze_assets access`),
# jobs are the bundle's.

locals {
  tags = {
    environment = var.environment
    system      = "bronze-assets"
  }
}

module "storage" {
  source = "../modules/azure_storage"

  name            = "bronze_${var.environment}"
  location        = var.location
  resource_group  = var.resource_group
  storage_account = var.storage_account
  replication     = var.replication
  tags            = local.tags
}

module "unity_catalog" {
  source = "../modules/unity_catalog"

  catalog        = var.catalog
  create_catalog = var.create_catalog
  schemas        = var.schemas
  tables_url     = module.storage.tables_url
  files_url      = module.storage.files_url
  platform       = var.roles.platform
}

module "key_vault" {
  source = "../modules/key_vault"

  name                             = var.key_vault
  scope                            = "bronze-${var.environment}"
  location                         = var.location
  resource_group                   = var.resource_group
  databricks_application_object_id = var.databricks_application_object_id
  platform_object_id               = var.platform_object_id
  platform                         = var.roles.platform
  tags                             = local.tags
}

module "compute" {
  source = "../modules/compute"

  environment    = var.environment
  node_type      = var.node_type
  max_workers    = var.max_workers
  warehouse_size = var.warehouse_size
  roles          = var.roles
  tags           = local.tags

  policy_overrides = {
    "azure_attributes.availability"       = { type = "fixed", value = "SPOT_WITH_FALLBACK_AZURE" }
    "azure_attributes.first_on_demand"    = { type = "fixed", value = 1 }
    "azure_attributes.spot_bid_max_price" = { type = "fixed", value = -1 }
  }
}
