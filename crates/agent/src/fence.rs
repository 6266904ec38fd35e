//! Until when a task may run on a host that no manager answers: `skep.stop-after`.
//!
//! Counted from when the last heartbeat that was answered had been *sent*: the leader cannot have received it before, so
//! whatever the answer's way took, the leader's count began no earlier. The supervisor keeps the time and kills, so that it
//! holds for a daemon that is paused or dead as well. The leader's half is `control::orchestrate::fence`.

use std::time::Duration;

use skep_model::assignment::AssignmentSet;
use skep_model::task::Task;

/// Both on the clock that counts from the host's boot. `None` if nothing limits it.
pub fn may_run_until(task: &Task, answered_sent_at: Duration) -> Option<Duration> {
    Some(answered_sent_at + task.stop_after()?)
}

/// What of the orders that a daemon finds on its disk it goes by before a manager has given it new ones. A task that must not
/// run twice may have ended, here or by being given up, and another taken its place: it is not begun. Its container goes on for
/// as long as its lease allows.
pub fn until_told_again(mut saved: AssignmentSet) -> AssignmentSet {
    saved.tasks.retain(|_, task| task.stop_after().is_none());
    saved
}

#[cfg(test)]
mod tests {
    use skep_model::TaskId;

    use super::*;
    use crate::spec::tests::task;

    #[test]
    fn only_a_task_that_is_labelled_is_limited() {
        let mut task = task();
        assert_eq!(may_run_until(&task, Duration::from_secs(100)), None);
        task.service_labels.insert("skep.stop-after".into(), "5s".into());
        assert_eq!(may_run_until(&task, Duration::from_secs(100)), Some(Duration::from_secs(105)));
    }

    #[test]
    fn before_a_manager_says_so_only_what_may_run_twice_is_begun() {
        let plain = task();
        let mut fenced = Task { id: TaskId::from_bits(77), ..plain.clone() };
        fenced.service_labels.insert("skep.stop-after".into(), "5s".into());
        let tasks = [plain.clone(), fenced].map(|task| (task.id.clone(), task)).into();
        let saved = AssignmentSet { tasks, ..AssignmentSet::default() };
        assert_eq!(until_told_again(saved).tasks.into_keys().collect::<Vec<_>>(), [plain.id]);
    }
}
