"""The work of other libraries, each in its best form."""
