//! How many tasks of a queue are lost and not cleared yet: what the search for them ([`lost`](super::lost)) would clear, for
//! those who only look.

use super::super::client::Engine;
use super::super::keys::QueueName;
use super::lost::{CHUNK, LostMode, look_through, tasks_in};

/// Pages that one count looks at, of some hundreds of tasks each; more are left out.
const PAGES: usize = 1000;

/// Tasks that are believed to be on their way and are nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// So many.
    pub tasks: u64,
    /// Whether all that may be lost was looked at.
    pub all_seen: bool,
}

impl Engine {
    /// Counts the lost tasks of a queue, page by page, and changes nothing.
    pub async fn missing(&self, queue: &QueueName) -> anyhow::Result<Missing> {
        let keys = self.keys(queue);
        let mut found = Missing { tasks: 0, all_seen: true };
        // What waits for its time has a field too; without one an envelope may be left.
        for hash in [keys.meta(), keys.envelopes()] {
            let (mut cursor, mut pages) = (0, 0);
            loop {
                let (next, suspects) = tasks_in(self, &hash, cursor).await?;
                for chunk in suspects.chunks(CHUNK) {
                    found.tasks += look_through(self, &keys, chunk, LostMode::Look).await?.cleared;
                }
                (cursor, pages) = (next, pages + 1);
                if cursor == 0 || pages >= PAGES {
                    found.all_seen &= cursor == 0;
                    break;
                }
            }
            // A lost one may stand in both hashes, and counts once.
            if found.tasks > 0 {
                break;
            }
        }
        Ok(found)
    }
}
