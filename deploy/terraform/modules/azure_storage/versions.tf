terraform {
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
}
