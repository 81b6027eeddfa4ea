"""Training: a loaded model and examples become an adapter, or a model. Knows neither Django nor Celery."""
