//! What the services of a test log: it is in the output of the test when it fails, and says which statement met which error.

use std::sync::Once;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::prelude::*;

/// Shows warnings and errors, or what `RUST_LOG` says.
pub fn show() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let filter = EnvFilter::builder().with_default_directive(tracing::Level::WARN.into()).from_env_lossy();
        // By way of `print!`, which the test's runner keeps for the test whose thread this runs in.
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_test_writer();
        tracing_subscriber::registry().with(filter).with(lines).init();
    });
}
