//! The async runtime as openraft uses it: tokio's, with dice that can be seeded and watch channels that wake in order.
//!
//! tokio spreads the waiters of a watch channel over eight lists and picks the list by a random number nobody can seed; with
//! two followers the leader would then send to either first. Everything else of tokio's single-threaded runtime with a
//! paused clock does the same thing every time.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::OptionalSend;
use openraft::async_runtime::watch::{RecvError, SendError};
use openraft::async_runtime::{AsyncRuntime, Watch, WatchReceiver, WatchSender};
use openraft::impls::TokioRuntime;
use openraft::rt::deterministic_rng::DeterministicRng;
use tokio::sync::{Notify, watch};

/// What openraft is instantiated with: every draw comes from the seed of [`with_seed`].
pub(crate) type Runtime = DeterministicRng<InOrder>;

/// Runs what starts openraft's tasks; all they draw, and the tasks they start, follows from `seed`.
pub(crate) async fn with_seed<F: Future>(seed: u64, future: F) -> F::Output {
    Runtime::scope(seed, future).await
}

/// A seed nobody knows.
pub(crate) fn random_seed() -> u64 {
    let mut seed = [0; 8];
    aws_lc_rs::rand::fill(&mut seed).expect("the kernel's random source answers");
    u64::from_ne_bytes(seed)
}

/// tokio, with the watch channels of this module.
#[derive(Debug)]
pub(crate) struct InOrder(TokioRuntime);

impl AsyncRuntime for InOrder {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = OrderedWatch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        self.0.block_on(future)
    }
}

/// A watch channel whose waiters wake in the order in which they began to wait.
pub(crate) struct OrderedWatch;

pub(crate) struct Sender<T> {
    // In this order: a waiter woken by the drop finds the channel closed.
    value: watch::Sender<T>,
    waiters: Waiters,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), waiters: self.waiters.clone() }
    }
}

#[derive(Clone)]
struct Waiters(Arc<Notify>);

impl Drop for Waiters {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

pub(crate) struct Receiver<T> {
    value: watch::Receiver<T>,
    changed: Arc<Notify>,
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), changed: self.changed.clone() }
    }
}

impl Watch for OrderedWatch {
    type Sender<T: Send + Sync> = Sender<T>;
    type Receiver<T: Send + Sync> = Receiver<T>;
    type Ref<'a, T: Send + 'a> = watch::Ref<'a, T>;

    fn channel<T: Send + Sync>(init: T) -> (Sender<T>, Receiver<T>) {
        let (sender, value) = watch::channel(init);
        let changed = Arc::new(Notify::new());
        (Sender { value: sender, waiters: Waiters(changed.clone()) }, Receiver { value, changed })
    }
}

impl<T: Send + Sync> WatchSender<OrderedWatch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.value.send(value).map_err(|unsent| SendError(unsent.0))?;
        self.waiters.0.notify_waiters();
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        let modified = self.value.send_if_modified(modify);
        if modified {
            self.waiters.0.notify_waiters();
        }
        modified
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.value.borrow()
    }

    fn subscribe(&self) -> Receiver<T> {
        Receiver { value: self.value.subscribe(), changed: self.waiters.0.clone() }
    }
}

impl<T: Send + Sync> WatchReceiver<OrderedWatch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        loop {
            let mut woken = std::pin::pin!(self.changed.notified());
            // From here on no notification is missed.
            woken.as_mut().enable();
            let unseen = self.value.borrow().has_changed();
            if unseen {
                self.value.mark_unchanged();
                return Ok(());
            }
            self.value.has_changed().map_err(|_closed| RecvError(()))?;
            woken.await;
        }
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.value.borrow()
    }

    fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        self.value.borrow_and_update()
    }
}
