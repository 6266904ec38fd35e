use crate::dirty::Dirty;
use crate::plan::Plan;
pub(crate) fn networks_and_nodes(_plan: &mut Plan, _dirty: &Dirty) {}
pub(crate) fn services(_plan: &mut Plan, _dirty: &Dirty) {}
pub(crate) fn tasks(_plan: &mut Plan) {}
