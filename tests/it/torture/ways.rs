//! The ways from one process to the servers, and what befalls them.

use std::time::Duration;

use super::faults::Fault;
use crate::support::proxy::mysql::Trap;
use crate::support::{Direction, LostAt, Proxy};

/// Commits of one process that are lost, or rolled back, at most.
const COMMITS: usize = 5;

/// A process has ways of its own: what befalls them is not another's business.
pub struct Ways {
    pub to_mysql: Proxy,
    pub to_redis: Proxy,
}

impl Ways {
    /// To servers at these addresses.
    pub async fn new(mysql: &str, redis: &str) -> Self {
        Self { to_mysql: Proxy::to(mysql).await, to_redis: Proxy::to(redis).await }
    }

    /// Makes a fault of theirs happen; gives what is to be kept while it lasts. Others are not theirs.
    pub fn cause(&self, fault: Fault) -> Vec<Trap> {
        let (mysql, redis) = (&self.to_mysql, &self.to_redis);
        match fault {
            Fault::MySqlSilent => mysql.silence(),
            Fault::MySqlDeaf => mysql.one_way(Direction::ToServer).silence(),
            Fault::MySqlMute => mysql.one_way(Direction::ToClient).silence(),
            Fault::MySqlReset => mysql.reset(),
            Fault::MySqlSlow => mysql.slow_down(Duration::from_millis(150)),
            Fault::MySqlInPieces => mysql.in_pieces_of(Some(1)),
            Fault::MySqlCut => mysql.cut_after(Some(20_000)),
            Fault::CommitLost => return (0..COMMITS).map(|_| mysql.lose_commit(LostAt::Answer, "")).collect(),
            Fault::CommitRolledBack => return (0..COMMITS).map(|_| mysql.deadlock_at_commit("")).collect(),
            Fault::RedisSilent => redis.silence(),
            Fault::RedisDeaf => redis.one_way(Direction::ToServer).silence(),
            Fault::RedisMute => redis.one_way(Direction::ToClient).silence(),
            Fault::RedisReset => redis.reset(),
            Fault::RedisHangs => redis.slow_down(Duration::from_secs(600)),
            _ => {}
        }
        Vec::new()
    }

    /// They are good from now on; what was silent stays so.
    pub fn mend(&self) {
        for way in [&self.to_mysql, &self.to_redis] {
            way.slow_down(Duration::ZERO);
            way.in_pieces_of(None);
            way.cut_after(None);
        }
    }
}
