"""Client-side rate limits, within one process or shared between processes."""
