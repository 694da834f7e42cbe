"""The page for a browser: `answers` computes what it shows, and `page` lays it out with Gradio."""
