//! `docker service ps`, `/tasks`.

use skep_model::task::Task;

use super::Node;
use crate::error::Result;

impl Node {
    pub fn task_list(&self) -> Result<Vec<Task>> {
        unimplemented!()
    }

    /// By id or an unambiguous beginning of it.
    pub fn task_inspect(&self, reference: &str) -> Result<Task> {
        let _ = reference;
        unimplemented!()
    }
}
