"""The page of the installation: health, versions, migrations, settings."""
