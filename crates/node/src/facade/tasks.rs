//! `docker service ps`, `/tasks`.

use skep_model::task::Task;

use super::Node;
use crate::error::Result;

impl Node {
    pub fn task_list(&self) -> Result<Vec<Task>> {
        Ok(self.view()?.tasks().map(|t| (**t).clone()).collect())
    }

    /// By id, full name, or an unambiguous beginning of the id.
    pub fn task_inspect(&self, reference: &str) -> Result<Task> {
        Ok((**self.view()?.find_task(reference)?).clone())
    }
}
