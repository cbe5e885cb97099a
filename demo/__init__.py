"""A small page in the browser: a photo in, an object out. It uses only the names that ``trilift`` exports."""
