//! Attempts to log in, counted in Redis.
//!
//! An attempt is counted before it is judged: a thousand guesses at once are a thousand attempts. What is counted:
//!
//! * by **number and address**, strictly: after some failed logins the next ones are slowed down;
//! * by **number** alone, over all addresses and a day, looser: so that a thousand addresses guess no more than about a
//!   thousand passwords a day. What others guessed does not hold up the first attempts of a site, which may be the
//!   owner's;
//! * by **address** alone: failed logins only, and those that are being judged.
//!
//! A device on which the owner logged in before has a count of its own in place of all three, and those of one number
//! together another: strangers can neither use it up nor make it wait. Slowing is a growing pause. Whoever never stops asking
//! can take each turn after it, at their own address and, once its passes are used up, at those of everybody.
//!
//! The keys share a hash tag, since one script counts them: logins are few, because each costs a password's hash.

use std::sync::LazyLock;
use std::time::Duration;

use ::redis::Script;
use anyhow::Context;

use super::address::ClientAddress;
use super::device::DeviceId;
use super::model::Phone;
use crate::app::App;
use crate::error::{Kind, Result, refuse};

static ATTEMPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/attempt.lua")));
static JUDGED: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/judged.lua")));

/// A pause up to this is waited for; for a longer one the client is told to come back.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// The longest pause between two attempts of one number from one address.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause between two attempts of one number from anywhere: less than a thousand in a day.
const LONGEST_PAUSE_OF_NUMBER: Duration = Duration::from_secs(90);
/// Attempts of one number by one site that are let past the number's pause in a day: an owner who mistypes on a new device.
const PASSES_OF_SITE: u32 = 5;
/// Those of all sites together: so much more can be guessed of a number in a day, however many addresses guess.
const PASSES_OF_NUMBER: u32 = 100;
/// Attempts of one number from anywhere are counted for so long.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A login that is counted, and not judged yet.
pub(super) struct Attempt {
    keys: Vec<String>,
    site: String,
    /// It was let past the number's pause.
    passed: bool,
}

/// How it was judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    /// The password is the number's.
    Right,
    /// It is not, or nobody has the number.
    Wrong,
    /// Nobody looked: too many at once, or a server was away.
    Not,
}

/// Counts a login of `phone`, and waits for its turn; one too many is refused.
pub(super) async fn attempt(
    app: &App,
    from: &ClientAddress,
    device: Option<&DeviceId>,
    phone: &Phone,
) -> Result<Attempt> {
    let key = |what: &str| format!("{}:{{logins}}:{what}", app.redis.prefix());
    let (phone, address) = (phone.as_str(), &from.subscriber);
    let keys = match device {
        Some(device) => vec![key(&format!("device:{phone}:{}", device.as_str())), key(&format!("known:{phone}"))],
        None => vec![
            key(&format!("from:{phone}:{address}")),
            key(&format!("number:{phone}")),
            key(&format!("address:{address}")),
        ],
    };
    let auth = &app.config.auth;
    let mut call = ATTEMPT.prepare_invoke();
    for key in &keys {
        call.key(key);
    }
    call.arg(app.clock.now().ms()).arg(ms(LONGEST_WAIT));
    call.arg(auth.login_window_s * 1000).arg(auth.login_attempts).arg(ms(LONGEST_PAUSE));
    call.arg(ms(DAY)).arg(auth.login_attempts_per_number).arg(ms(LONGEST_PAUSE_OF_NUMBER));
    call.arg(auth.login_attempts_per_address);
    call.arg(PASSES_OF_NUMBER).arg(PASSES_OF_SITE).arg(&from.site);
    let (verdict, ms): (u8, u64) =
        call.invoke_async(&mut app.redis.commands()).await.context("counting login attempts")?;
    match verdict {
        0 | 3 if ms == 0 => {}
        0 | 3 => tokio::time::sleep(Duration::from_millis(ms)).await,
        1 => {
            let refusal = refuse(Kind::TooManyAttempts, "too many failed logins: wait before the next one");
            return Err(refusal.retry_after(ms.div_ceil(1000).max(1)).into());
        }
        _ => return Err(refuse(Kind::Overloaded, "too many logins of this address at once").retry_after(1).into()),
    }
    Ok(Attempt { keys, site: from.site.clone(), passed: verdict == 3 })
}

fn ms(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

impl Attempt {
    /// Says how it was judged. Not said, it counts as a failed one.
    pub(super) async fn end(self, app: &App, judged: Judged) -> Result<()> {
        let mut call = JUDGED.prepare_invoke();
        for key in &self.keys {
            call.key(key);
        }
        call.arg(match judged {
            Judged::Right => "right",
            Judged::Wrong => "wrong",
            Judged::Not => "unjudged",
        });
        call.arg(&self.site).arg(u8::from(self.passed));
        let () = call.invoke_async(&mut app.redis.commands()).await.context("ending a login attempt")?;
        Ok(())
    }
}
