//! The mesh on this host.
