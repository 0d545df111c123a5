//! What a handler holds of its task beside the arguments: when to stop, and how to tell how far it is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use tokio_util::sync::CancellationToken;

use onrush_platform::clock::At;
use onrush_platform::traces::TraceParent;

/// A running task's handle.
#[derive(Debug, Default)]
pub struct Control {
    stop: CancellationToken,
    revoked: AtomicBool,
    deadline: Option<At>,
    progress: Mutex<Option<(u64, u64)>>,
    changed: tokio::sync::Notify,
    trace: OnceLock<TraceParent>,
}

impl Control {
    /// Of a task that is told to stop at `deadline`.
    pub(super) fn new(deadline: Option<At>) -> Self {
        Self { deadline, ..Self::default() }
    }

    /// Cancelled when the task was taken back or its time is over: the handler should end soon, between two steps.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// When the task is told to stop, where it has a limit.
    pub fn deadline(&self) -> Option<At> {
        self.deadline
    }

    /// Says how far the task is, to whoever polls it.
    pub fn set_progress(&self, done: u64, of: u64) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some((done, of));
        self.changed.notify_one();
    }

    pub(super) fn progress(&self) -> Option<(u64, u64)> {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when there is progress to tell.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The task was taken back.
    pub(super) fn revoke(&self) {
        self.revoked.store(true, Ordering::SeqCst);
        self.stop.cancel();
    }

    /// The span of this attempt. A batch whose handler panicked runs again one by one: the first word stays.
    pub(super) fn set_trace(&self, trace: TraceParent) {
        let _ = self.trace.set(trace);
    }

    pub(super) fn trace(&self) -> Option<&TraceParent> {
        self.trace.get()
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::SeqCst)
    }
}
