"""Generates text for many requests at once, on one device. Knows neither Django nor Celery.

`request` what is asked and how it stands; `scheduler` who is next; `model` and `cache` the forward pass over rows of
different lengths; `sampling` the next token; `text` tokens to text; `loop` the engine itself and its thread.
"""
