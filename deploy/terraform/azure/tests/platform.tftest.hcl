# `terraform test`, without a cloud: what a plan of each environment makes.

mock_provider "azurerm" {
  mock_resource "azurerm_storage_account" {
    defaults = { id = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.Storage/storageAccounts/st" }
  }
  mock_data "azurerm_client_config" {
    defaults = { tenant_id = "00000000-0000-0000-0000-000000000000" }
  }
}

mock_provider "databricks" {}

variables {
  location                         = "westeurope"
  resource_group                   = "rg-bronze"
  storage_account                  = "stbronze"
  key_vault                        = "kv-bronze"
  databricks_application_object_id = "00000000-0000-0000-0000-000000000001"
  platform_object_id               = "00000000-0000-0000-0000-000000000002"
  workspace_url                    = "https://adb-0.0.azuredatabricks.net"
  workspace_resource_id            = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.Databricks/workspaces/w"
}

run "a_catalog_is_made" {
  command = plan

  variables {
    environment    = "dev"
    catalog        = "dev_inventory"
    create_catalog = true
    max_workers    = 2
  }

  assert {
    condition     = output.BRONZE_CATALOG == "dev_inventory"
    error_message = "the catalog is the environment's"
  }
}

run "a_catalog_that_is_there_is_left_alone" {
  command = plan

  variables {
    environment    = "prod"
    catalog        = "workspace"
    create_catalog = false
    max_workers    = 8
  }

  assert {
    condition     = output.secret_scope == "bronze-prod"
    error_message = "the scope is the environment's"
  }
}

run "other_environments_are_refused" {
  command = plan

  variables {
    environment    = "staging"
    catalog        = "x"
    create_catalog = true
    max_workers    = 1
  }

  expect_failures = [var.environment]
}
