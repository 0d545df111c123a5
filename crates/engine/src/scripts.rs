//! The engine's Lua scripts. Each file says what its keys, arguments and reply are.

use std::sync::LazyLock;

use redis::Script;

macro_rules! script {
    ($name:ident, $($file:literal),+) => {
        pub static $name: LazyLock<Script> = LazyLock::new(|| Script::new(concat!($(include_str!($file)),+)));
    };
}

script!(ENQUEUE, "lua/streams.lua", "lua/enqueue.lua");
script!(PROMOTE, "lua/streams.lua", "lua/promote.lua");
script!(LOST, "lua/streams.lua", "lua/lost.lua");
script!(UNSCHEDULE, "lua/unschedule.lua");
script!(REVOKE, "lua/streams.lua", "lua/revoke.lua");
script!(JOIN, "lua/join.lua");
script!(SKIP, "lua/skip.lua");
script!(TAKE, "lua/take.lua");
script!(UNHEARD, "lua/unheard.lua");
script!(START, "lua/start.lua");
script!(RENEW, "lua/renew.lua");
script!(FINISH, "lua/streams.lua", "lua/finish.lua");
script!(GIVE_BACK, "lua/give_back.lua");
script!(HEARTBEAT, "lua/heartbeat.lua");
script!(KEEPERS, "lua/keepers.lua");
script!(SAMPLE, "lua/sample.lua");
script!(PURGE, "lua/streams.lua", "lua/purge.lua");
script!(REQUEUE, "lua/streams.lua", "lua/requeue.lua");
script!(PRUNE, "lua/prune.lua");
