"""What the people on duty run and read: KPIs, alerts, maintenance, retention, recovery."""
