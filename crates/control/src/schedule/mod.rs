pub(crate) fn assign(_plan: &mut crate::plan::Plan) {}
