"""What makes passes run: their contract, their text, pipelines, dumps and instruments."""
