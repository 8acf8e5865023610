"""Pictures of volumes, and volumes in a viewer."""
