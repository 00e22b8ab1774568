"""Images, patches, noise, and what a part search learns from."""
