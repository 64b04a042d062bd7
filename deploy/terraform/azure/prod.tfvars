# What is the same for everybody in prod; copy names of Azure and of the workspace into a file beside it.
environment    = "prod"
catalog        = "workspace"
create_catalog = false
max_workers    = 8
