//! The engine's Lua scripts. Each file says what its keys, arguments and reply are.

use std::sync::LazyLock;

use redis::Script;

macro_rules! script {
    ($name:ident, $file:literal) => {
        pub static $name: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!($file)));
    };
}

script!(ENQUEUE, "lua/enqueue.lua");
script!(PROMOTE, "lua/promote.lua");
script!(UNSCHEDULE, "lua/unschedule.lua");
script!(REVOKE, "lua/revoke.lua");
script!(JOIN, "lua/join.lua");
script!(START, "lua/start.lua");
script!(RENEW, "lua/renew.lua");
script!(FINISH, "lua/finish.lua");
script!(GIVE_BACK, "lua/give_back.lua");
script!(HEARTBEAT, "lua/heartbeat.lua");
script!(SAMPLE, "lua/sample.lua");
script!(PURGE, "lua/purge.lua");
script!(REQUEUE, "lua/requeue.lua");
script!(PRUNE, "lua/prune.lua");
