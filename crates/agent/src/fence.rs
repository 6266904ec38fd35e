//! Until when a task may run on a host that no manager answers: `skep.stop-after`.
//!
//! Counted from when the last heartbeat that was answered had been *sent*: the leader cannot have received it before, so
//! whatever the answer's way took, the leader's count began no earlier. The supervisor keeps the time and kills, so that it
//! holds for a daemon that is paused or dead as well. The leader's half is `control::orchestrate::fence`.

use std::time::Duration;

use skep_model::task::Task;

/// Both on the clock that counts from the host's boot. `None` if nothing limits it.
pub fn may_run_until(task: &Task, answered_sent_at: Duration) -> Option<Duration> {
    Some(answered_sent_at + task.stop_after()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::task;

    #[test]
    fn only_a_task_that_is_labelled_is_limited() {
        let mut task = task();
        assert_eq!(may_run_until(&task, Duration::from_secs(100)), None);
        task.service_labels.insert("skep.stop-after".into(), "5s".into());
        assert_eq!(may_run_until(&task, Duration::from_secs(100)), Some(Duration::from_secs(105)));
    }
}
