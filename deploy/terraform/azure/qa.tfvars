# What is the same for everybody in qa; copy names of Azure and of the workspace into a file beside it.
environment    = "qa"
catalog        = "qa_inventory"
create_catalog = true
max_workers    = 2
