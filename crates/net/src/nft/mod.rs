//! nf_tables as values.
