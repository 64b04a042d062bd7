# What is the same for everybody in dev; copy names of Azure and of the workspace into a file beside it.
environment    = "dev"
catalog        = "dev_inventory"
create_catalog = true
max_workers    = 2
