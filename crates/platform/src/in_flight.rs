//! Requests under way: each has a place, and there are so many places.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

/// All places; cheap to clone.
#[derive(Clone, Debug)]
pub struct InFlightLimit {
    most: usize,
    taken: Arc<AtomicUsize>,
}

/// The place of one request. It is given up by [`InFlightPermit::leave`], or when all that hold it are gone: the request itself,
/// and what goes on for it when its client has left.
#[derive(Debug)]
pub struct InFlightPermit {
    taken: Arc<AtomicUsize>,
    left: AtomicBool,
}

impl InFlightLimit {
    /// With so many places.
    pub fn new(most: usize) -> Self {
        Self { most, taken: Arc::default() }
    }

    /// A place, if one is free.
    pub fn enter(&self) -> Option<Arc<InFlightPermit>> {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        let place = Arc::new(InFlightPermit { taken: self.taken.clone(), left: AtomicBool::new(false) });
        (before < self.most).then_some(place)
    }

    /// Places that are taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl InFlightPermit {
    /// Gives the place up before the request has ended: it only waits, within a bound of its own.
    pub fn leave(&self) {
        if !self.left.swap(true, Ordering::Relaxed) {
            self.taken.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for InFlightPermit {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The place of the request at hand, where it has one.
#[derive(Debug, Clone)]
pub struct OwnPermit(pub Option<Arc<InFlightPermit>>);

impl<S: Send + Sync> FromRequestParts<S> for OwnPermit {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.extensions.get::<Arc<InFlightPermit>>().cloned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_up_once() {
        let limit = InFlightLimit::new(1);
        let first = limit.enter().unwrap();
        assert!(limit.enter().is_none());
        first.leave();
        let second = limit.enter().unwrap();
        drop(first);
        assert!(limit.enter().is_none());
        drop(second);
        assert!(limit.enter().is_some());
    }
}
