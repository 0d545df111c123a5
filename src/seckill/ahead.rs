//! Long walks through a table: the next pages are read while those before are worked at, so that MySQL and Redis are
//! busy side by side and not in turns.

use std::future::Future;

use anyhow::Context;
use futures_util::stream::{self, Stream};
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::error::{Error, Result};

/// Pages that are read and wait to be worked at.
const PAGES_AHEAD: usize = 2;

/// The pages that `read` gives, each with where the next one begins, `None` after the last one. They are read in a task
/// of its own, which ends between two statements when nobody wants more: a sqlx future is never dropped half way.
pub fn pages<C, P, F, Fut>(first: C, read: F) -> impl Stream<Item = Result<P>> + Send + Unpin
where
    C: Send + 'static,
    P: Send + 'static,
    F: Fn(C) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(P, Option<C>)>> + Send + 'static,
{
    let (give, take) = mpsc::channel(PAGES_AHEAD);
    let reading = async move {
        let mut next = Some(first);
        while let Some(from) = next.take() {
            let page = read(from).await.map(|(page, then)| {
                next = then;
                page
            });
            if give.send(page).await.is_err() {
                return;
            }
        }
    };
    let reader = tokio::spawn(reading.in_current_span());
    let given = stream::unfold((take, Some(reader)), |(mut take, reader)| async move {
        if let Some(page) = take.recv().await {
            return Some((page, (take, reader)));
        }
        // No more pages: there are none, or the reader died, which must not look like the end.
        match reader?.await.context("reading ahead") {
            Ok(()) => None,
            Err(died) => Some((Err(Error::Internal(died)), (take, None))),
        }
    });
    Box::pin(given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;

    #[tokio::test]
    async fn every_page_comes_once_and_in_order() {
        let numbers = pages(0, |n: i32| async move { Ok::<_, Error>((n, (n < 9).then_some(n + 1))) });
        let read: Vec<i32> = numbers.map(Result::unwrap).collect().await;
        assert_eq!(read, (0..10).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_reader_that_fails_or_dies_does_not_look_like_the_end() {
        for dies in [false, true] {
            let ending = pages(0, move |n: i32| async move {
                assert!(n < 2 || !dies, "on purpose");
                if n < 2 { Ok((n, Some(n + 1))) } else { Err(Error::Internal(anyhow::anyhow!("no"))) }
            });
            let read: Vec<Result<i32>> = ending.collect().await;
            assert!(matches!(read[..], [Ok(0), Ok(1), Err(_)]), "{read:?}");
        }
    }
}
