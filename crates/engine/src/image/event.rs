//! What images and volumes tell the engine's event stream.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Becomes one `docker events` message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEvent {
    pub kind: ObjectKind,
    /// `pull`, `tag`, `create`, … as Docker spells it.
    pub action: &'static str,
    /// Docker's `Actor.ID`.
    pub id: String,
    /// Docker's `Actor.Attributes`.
    pub attributes: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    Image,
    Volume,
}

/// Where events go; must not block.
pub type EventSink = Arc<dyn Fn(ObjectEvent) + Send + Sync>;

/// Drops every event.
pub fn no_events() -> EventSink {
    Arc::new(|_| ())
}
