variable "catalog" {
  description = "The catalog of the bronze schemas."
  type        = string
}

variable "catalog_grants" {
  description = "Grantee → privileges on the catalog. This and the next two are made from the tables' declarations, see declared.auto.tfvars.json."
  type        = map(list(string))
}

variable "schema_grants" {
  description = "Schema → grantee → privileges."
  type        = map(map(list(string)))
}

variable "table_grants" {
  description = "Schema → table → grantee → privileges."
  type        = map(map(map(list(string))))
}
