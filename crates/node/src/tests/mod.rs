//! Whole clusters in one process: real certificates, RPC and log; only the containers are pretended.

mod alone;
mod backup;
mod cluster;
mod fake;
mod identity;
mod join;
mod liveness;
mod locks;
mod managers;
mod places;
mod run;
