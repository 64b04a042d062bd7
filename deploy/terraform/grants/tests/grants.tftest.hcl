# `terraform test`, without a cloud: which grants a plan has for the declarations and for the tables that are there.

mock_provider "databricks" {}

variables {
  catalog = "dev_inventory"
}

run "before_the_first_load" {
  command = plan

  override_data {
    target = data.databricks_tables.there
    values = { ids = [] }
  }

  assert {
    condition     = length(databricks_grant.catalog) == length(var.catalog_grants)
    error_message = "every role may use the catalog"
  }

  assert {
    condition     = toset(keys(databricks_grants.schema)) == toset(keys(var.schema_grants))
    error_message = "every schema has its grants"
  }

  assert {
    condition     = length(databricks_grants.table) == 0
    error_message = "no table is there, so none has grants"
  }

  assert {
    condition     = contains(output.tables_without_grants, "dev_inventory.inventory_bronze.bz_orders")
    error_message = "tables that are not there are told"
  }
}

run "after_a_load" {
  command = plan

  override_data {
    target = data.databricks_tables.there
    values = {
      ids = [
        "dev_inventory.inventory_bronze.bz_orders",
        "dev_inventory.inventory_bronze.bz_subject_keys",
        "dev_inventory.inventory_bronze.somebody_elses",
      ]
    }
  }

  assert {
    condition     = keys(databricks_grants.table) == ["dev_inventory.inventory_bronze.bz_orders"]
    error_message = "of the tables that are there, the declared ones have grants, and keys have none"
  }

  assert {
    condition = {
      for grant in databricks_grants.table["dev_inventory.inventory_bronze.bz_orders"].grant : grant.principal => tolist(grant.privileges)
    } == { for who, privileges in var.table_grants.inventory_bronze.bz_orders : who => tolist(privileges) }
    error_message = "a table's grants are the declared ones"
  }
}
