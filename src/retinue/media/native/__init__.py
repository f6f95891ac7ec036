"""Pictures in C++; the sources stand in this folder."""
