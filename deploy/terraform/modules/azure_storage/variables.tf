variable "name" {
  description = "Prefix of the names on Unity Catalog."
  type        = string
}

variable "location" {
  description = "Azure region."
  type        = string
}

variable "resource_group" {
  description = "An existing resource group."
  type        = string
}

variable "storage_account" {
  description = "Name of the storage account."
  type        = string
}

variable "replication" {
  description = "Replication of the storage account."
  type        = string
}

variable "tags" {
  description = "Tags of the Azure resources."
  type        = map(string)
}
