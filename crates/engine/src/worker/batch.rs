//! What was read at once.

use std::sync::Arc;

use super::super::registry::Delivery;

/// What was read at once, ready to run.
pub(super) struct Batch {
    pub readable: Vec<Arc<Delivery>>,
    /// With the reason.
    pub unreadable: Vec<(Arc<Delivery>, String)>,
}

impl Batch {
    pub(super) fn len(&self) -> usize {
        self.readable.len() + self.unreadable.len()
    }

    pub(super) fn into_deliveries(self) -> Vec<Arc<Delivery>> {
        self.readable.into_iter().chain(self.unreadable.into_iter().map(|(delivery, _)| delivery)).collect()
    }
}
