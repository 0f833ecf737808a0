"""TextWorldExpress and ScienceWorld, which run in a Java process."""
