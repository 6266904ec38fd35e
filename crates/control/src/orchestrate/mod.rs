use crate::ctx::IdSource;
use crate::dirty::Dirty;
use crate::plan::Plan;
pub(crate) fn reconcile(_plan: &mut Plan, _dirty: &Dirty, _ids: &mut dyn IdSource) {}
