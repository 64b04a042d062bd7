terraform {
  required_version = ">= 1.9"

  required_providers {
    azurerm = {
      source  = "hashicorp/azurerm"
      version = "5.2.0"
    }
    databricks = {
      source  = "databricks/databricks"
      version = "1.113.0"
    }
  }

  # One state for each environment: `terraform init -backend-config=<file>`.
  backend "azurerm" {
    use_azuread_auth = true
  }
}

provider "azurerm" {
  storage_use_azuread = true

  features {
    key_vault {
      # The master key of personal data lies there: losing it loses every protected value.
      purge_soft_delete_on_destroy    = false
      recover_soft_deleted_key_vaults = true
    }
  }
}

provider "databricks" {
  host                        = var.workspace_url
  azure_workspace_resource_id = var.workspace_resource_id
}
