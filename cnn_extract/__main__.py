"""``python -m cnn_extract`` is ``cnn-extract``."""

from cnn_extract.cli import app

if __name__ == "__main__":
    app()
