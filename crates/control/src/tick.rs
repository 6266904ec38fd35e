//! One pass of the leader: everything a change sets off, decided at once, so that a new service's tasks are made, given
//! addresses and assigned in one log entry.

use skep_store::View;

use crate::ctx::{Ctx, Decision};
use crate::dirty::Dirty;
use crate::plan::Plan;
use crate::{allocate, orchestrate, schedule};

/// Decides what is due. An empty decision means: nothing to do before `wake_at`, or before something is marked again.
///
/// The caller proposes `changes` (see [`crate::split`]), marks what the resulting events touch, and calls again; when
/// `wake_at` passes it calls with [`Dirty::all`].
pub fn tick(view: &View, dirty: &Dirty, ctx: &mut Ctx<'_>) -> Decision {
    let mut plan = Plan::new(view, ctx.now, ctx.steady_since);
    allocate::networks_and_nodes(&mut plan, dirty);
    allocate::services(&mut plan, dirty);
    if dirty.everything {
        schedule::misfits(&mut plan);
    }
    orchestrate::reconcile(&mut plan, dirty, ctx.ids);
    allocate::tasks(&mut plan);
    let placed = schedule::assign(plan.view(), plan.now());
    let wake_at = plan.wake_at();
    Decision { changes: plan.conclude(placed), wake_at }
}
