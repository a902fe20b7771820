"""What the service is made of and how its parts are: versions, settings, migrations, health, backlogs."""
