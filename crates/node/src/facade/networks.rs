//! Swarm-scoped networks: `docker network create -d overlay`.

use skep_model::NetworkId;
use skep_model::network::{Network, NetworkSpec};

use super::Node;
use crate::error::Result;

impl Node {
    pub async fn network_create(&self, spec: NetworkSpec) -> Result<NetworkId> {
        let _ = spec;
        unimplemented!()
    }

    pub fn network_list(&self) -> Result<Vec<Network>> {
        unimplemented!()
    }

    pub fn network_inspect(&self, reference: &str) -> Result<Network> {
        let _ = reference;
        unimplemented!()
    }

    pub async fn network_remove(&self, reference: &str) -> Result<()> {
        let _ = reference;
        unimplemented!()
    }
}
