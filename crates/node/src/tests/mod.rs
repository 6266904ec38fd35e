//! Whole clusters in one process: real certificates, RPC and log; only the containers are pretended.

mod cluster;
mod fake;
mod join;
mod run;
