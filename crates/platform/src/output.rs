//! What a command prints for people and pipes.

use std::fmt::Display;
use std::io::{ErrorKind, Write, stdout};

use anyhow::Context;

/// Nobody reads the standard output any more: `onrush openapi | head -1` has what it wanted.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub struct OutputClosed;

/// Prints a line. The error is [`OutputClosed`] when its reader is gone; `println!` would panic.
pub fn say(line: impl Display) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        Err(error) => Err(error).context("writing to the standard output"),
    }
}
