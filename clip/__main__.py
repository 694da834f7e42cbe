"""``python -m clip`` is the ``clip`` command."""

from clip.command import main

if __name__ == "__main__":
    main()
