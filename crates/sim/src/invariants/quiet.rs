//! Every reconcile of a settled world is empty: whoever looks, and from whichever manager's View, there is nothing to do.

use skep_control::{Ctx, Dirty, SeededIds, tick};

use super::{Holds, Invariant, Settled};

pub(crate) struct Quiet;

impl Invariant for Quiet {
    fn settled(&mut self, world: &Settled) -> Holds {
        for (host, view) in &world.managers {
            let mut ids = SeededIds(1);
            let decision = tick(
                view,
                &Dirty::all(),
                &mut Ctx { now: world.clock, steady_since: skep_model::Timestamp::ZERO, ids: &mut ids },
            );
            if let Some(change) = decision.changes.first() {
                return Err(format!(
                    "{host} would still do {} things, the first of them {change:?}",
                    decision.changes.len()
                ));
            }
        }
        Ok(())
    }
}
