resource "azurerm_storage_account" "this" {
  name                            = var.storage_account
  resource_group_name             = var.resource_group
  location                        = var.location
  account_tier                    = "Standard"
  account_replication_type        = var.replication
  is_hns_enabled                  = true
  min_tls_version                 = "TLS1_2"
  allow_nested_items_to_be_public = false
  # Whoever holds an account key passes by grants and masks.
  shared_access_key_enabled       = false
  default_to_oauth_authentication = true
  tags                            = var.tags

  # No soft delete and no versions of blobs on purpose: they would keep the rows of erased persons, and the archived
  # files of which an erasure destroys the key, longer than the tables' own 30 days.

  lifecycle {
    prevent_destroy = true
  }
}

resource "azurerm_storage_container" "this" {
  for_each = toset(["tables", "files"])

  name                  = each.key
  storage_account_id    = azurerm_storage_account.this.id
  container_access_type = "private"

  lifecycle {
    prevent_destroy = true
  }
}

resource "azurerm_databricks_access_connector" "this" {
  name                = "${var.storage_account}-connector"
  resource_group_name = var.resource_group
  location            = var.location
  tags                = var.tags

  identity {
    type = "SystemAssigned"
  }
}

resource "azurerm_role_assignment" "connector" {
  scope                = azurerm_storage_account.this.id
  role_definition_name = "Storage Blob Data Contributor"
  principal_id         = azurerm_databricks_access_connector.this.identity[0].principal_id
}

resource "databricks_storage_credential" "this" {
  name           = var.name
  comment        = "Bronze tables and files."
  isolation_mode = "ISOLATION_MODE_ISOLATED"

  azure_managed_identity {
    access_connector_id = azurerm_databricks_access_connector.this.id
  }

  depends_on = [azurerm_role_assignment.connector]
}

resource "databricks_external_location" "this" {
  for_each = azurerm_storage_container.this

  name            = "${var.name}_${each.key}"
  url             = "abfss://${each.value.name}@${azurerm_storage_account.this.name}.dfs.core.windows.net/"
  credential_name = databricks_storage_credential.this.name
  comment         = "Bronze ${each.key}. No grants: READ FILES passes by masks and row filters."
  isolation_mode  = "ISOLATION_MODE_ISOLATED"
}
