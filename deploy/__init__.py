"""What brings the platform onto machines and clouds. Not part of the wheel; docs/deploy.md says how it is used."""
