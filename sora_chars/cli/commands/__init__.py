"""The commands of `sora-chars`. `app.COMMANDS` lists them; each module is imported when its command runs."""
