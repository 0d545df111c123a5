//! Keys of a type that is not their own: somebody wrote over one (`SET`), or another program uses the prefix. What needs such
//! a key fails until it is deleted. The queue is named, and everything that does not need the key goes on.

use anyhow::Context;
use redis::RedisError;

use super::client::Engine;
use super::keys::QueueName;

/// Whether Redis says that a key holds something else than it should.
pub fn is_wrong_type(error: &anyhow::Error) -> bool {
    // A script passes it on within a text of its own in versions before 7.
    let says_so = |error: &RedisError| error.code() == Some("WRONGTYPE") || error.to_string().contains("WRONGTYPE");
    error.downcast_ref::<RedisError>().is_some_and(says_so)
}

impl Engine {
    /// The keys of a queue that hold something of a type that is not their own, each with what it holds.
    pub async fn misshapen(&self, queue: &QueueName) -> anyhow::Result<Vec<String>> {
        let all = self.keys(queue).types();
        let mut asked = redis::pipe();
        for (key, _) in &all {
            asked.cmd("TYPE").arg(key);
        }
        let found: Vec<String> =
            asked.query_async(&mut self.redis.commands()).await.context("looking at a queue's keys")?;
        let wrong = all.iter().zip(found).filter(|((_, wanted), found)| found != "none" && found != wanted);
        Ok(wrong.map(|((key, wanted), found)| format!("{key} is a {found}, not a {wanted}")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_type_is_known_under_what_was_being_done() {
        let of = |text: &str| RedisError::from((redis::ErrorKind::Extension, "a fault", text.to_owned()));
        let wrong = anyhow::Error::from(of("WRONGTYPE Operation against a key")).context("moving").context("keeping");
        assert!(is_wrong_type(&wrong));
        assert!(!is_wrong_type(&anyhow::Error::from(of("OOM command not allowed")).context("moving")));
        assert!(!is_wrong_type(&anyhow::anyhow!("WRONGTYPE")));
    }
}
