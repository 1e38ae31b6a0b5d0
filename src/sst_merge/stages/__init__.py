"""The stages: file = verb = command = artefact."""
