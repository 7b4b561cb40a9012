"""Use cases: settings and paths in, a result out. Knows run folders, not the terminal."""
