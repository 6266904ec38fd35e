//! What flows: framed output, hijacked connections, lines of JSON.

pub(crate) mod detach;
pub(crate) mod hijack;
pub(crate) mod lines;
pub(crate) mod logs;
pub(crate) mod stdcopy;
