//! What readers see: the latest applied view, and applied changes as a bounded stream. A reader that falls behind is told
//! to start over from a view, never cut off silently.

use std::sync::Arc;

use arc_swap::ArcSwap;
use skep_store::{Event, View};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

/// Notices a slow reader may be behind before it is told to resync.
const FEED_CAPACITY: usize = 1024;

/// One step of the feed. `Consensus::view()` is at least as new as the notice whenever one is received.
#[derive(Clone, Debug)]
pub enum Notice {
    /// Entry `index` was applied and made these changes.
    Applied { index: u64, events: Arc<[Event]> },
    /// Events up to `index` were missed (the reader was slow, or a snapshot replaced the store): read a view anew.
    Resync { index: u64 },
}

/// The latest applied state and the feed of changes; readers never wait for the writer, nor it for them.
pub(crate) struct Published {
    latest: ArcSwap<(u64, View)>,
    sender: broadcast::Sender<Notice>,
    /// Ends every stream; the last view stays readable.
    closed: CancellationToken,
}

impl Published {
    pub(crate) fn new(index: u64, view: View) -> Arc<Self> {
        let (sender, _) = broadcast::channel(FEED_CAPACITY);
        Arc::new(Self { latest: ArcSwap::from_pointee((index, view)), sender, closed: CancellationToken::new() })
    }

    pub(crate) fn view(&self) -> View {
        self.latest.load().1.clone()
    }

    pub(crate) fn index(&self) -> u64 {
        self.latest.load().0
    }

    /// The view first, then the notice: whoever hears of a change can see it.
    pub(crate) fn applied(&self, index: u64, view: View, events: Vec<Event>) {
        self.latest.store(Arc::new((index, view)));
        if !events.is_empty() {
            // Nobody listening is fine.
            let _ = self.sender.send(Notice::Applied { index, events: events.into() });
        }
    }

    pub(crate) fn replaced(&self, index: u64, view: View) {
        self.latest.store(Arc::new((index, view)));
        let _ = self.sender.send(Notice::Resync { index });
    }

    pub(crate) fn subscribe(self: &Arc<Self>) -> EventStream {
        EventStream { receiver: self.sender.subscribe(), closed: self.closed.clone(), published: Arc::downgrade(self) }
    }

    pub(crate) fn close(&self) {
        self.closed.cancel();
    }
}

/// A reader's end of the feed.
pub struct EventStream {
    receiver: broadcast::Receiver<Notice>,
    closed: CancellationToken,
    /// Weak, so that a reader does not keep a closed feed open.
    published: std::sync::Weak<Published>,
}

impl EventStream {
    /// The next notice; `None` once consensus has shut down. Cancel safe.
    pub async fn next(&mut self) -> Option<Notice> {
        let received = tokio::select! {
            biased;
            received = self.receiver.recv() => received,
            () = self.closed.cancelled() => return None,
        };
        match received {
            Ok(notice) => Some(notice),
            Err(broadcast::error::RecvError::Closed) => None,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                // Skip what is still queued: the view the reader takes next is newer than all of it.
                self.receiver = self.receiver.resubscribe();
                Some(Notice::Resync { index: self.published.upgrade()?.index() })
            }
        }
    }
}
