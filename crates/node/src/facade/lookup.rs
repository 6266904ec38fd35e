//! How a name on the command line finds its object: full id, then name, then an unambiguous beginning of an id.
