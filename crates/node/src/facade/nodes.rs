//! `docker node …`.

use skep_model::node::{Node as NodeObject, NodeSpec};

use super::Node;
use crate::error::Result;

impl Node {
    pub fn node_list(&self) -> Result<Vec<NodeObject>> {
        unimplemented!()
    }

    /// By id, name, or an unambiguous beginning of the id; `self` is this node.
    pub fn node_inspect(&self, reference: &str) -> Result<NodeObject> {
        let _ = reference;
        unimplemented!()
    }

    pub async fn node_update(&self, reference: &str, version: u64, spec: NodeSpec) -> Result<()> {
        let _ = (reference, version, spec);
        unimplemented!()
    }

    pub async fn node_remove(&self, reference: &str, force: bool) -> Result<()> {
        let _ = (reference, force);
        unimplemented!()
    }
}
