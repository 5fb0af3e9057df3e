"""The bytes of an image file become the pixels that a network sees."""
