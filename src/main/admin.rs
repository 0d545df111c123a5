//! `onrush admin`: the accounts that run the shop.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use onrush::access::{self, StaffAccount};
use onrush::auth::{Changed, Phone, Role};
use onrush::error::Error;
use onrush::platform::output::say;

use super::{ConfigArgs, connect, require_current_schema};

/// Accounts that run the shop: makes them, gives them a role, takes them away.
///
/// Roles: `auditor` sees everything and changes nothing, `support` helps buyers, `finance` settles money, `operator` runs
/// the sales and the queues, `admin` may do everything, `user` has no role. docs/OPERATIONS.md says what each may do.
#[derive(Subcommand)]
pub enum AdminCommand {
    /// Makes an account with a role. The password is read from the terminal, or from the first line of standard input.
    Create {
        #[command(flatten)]
        config: ConfigArgs,
        /// The phone number that it logs in with.
        #[arg(long)]
        phone: String,
        /// What others see.
        #[arg(long, default_value = "")]
        nickname: String,
        /// What it may do.
        #[arg(long, value_parser = role)]
        role: Role,
    },
    /// Gives the account with this number another role. `user` takes its role away, at once.
    Role {
        #[command(flatten)]
        config: ConfigArgs,
        /// The account's phone number.
        phone: String,
        /// What it may do from now on.
        #[arg(value_parser = role)]
        role: Role,
    },
    /// Ends all logins of the account with this number, and lets nobody log in to it.
    Disable {
        #[command(flatten)]
        config: ConfigArgs,
        /// The account's phone number.
        phone: String,
    },
    /// Lets the owner of a disabled account log in again.
    Enable {
        #[command(flatten)]
        config: ConfigArgs,
        /// The account's phone number.
        phone: String,
    },
    /// Lists the accounts that have a role.
    List {
        #[command(flatten)]
        config: ConfigArgs,
    },
}

/// A role by its name.
fn role(text: &str) -> Result<Role, String> {
    let names = Role::ALL.map(Role::as_str).join(", ");
    text.parse().map_err(|_| format!("must be one of: {names}"))
}

pub async fn run(command: AdminCommand) -> anyhow::Result<ExitCode> {
    let (AdminCommand::Create { config, .. }
    | AdminCommand::Role { config, .. }
    | AdminCommand::Disable { config, .. }
    | AdminCommand::Enable { config, .. }
    | AdminCommand::List { config }) = &command;
    let app = connect(config).await?;
    require_current_schema(&app).await?;
    match command {
        AdminCommand::Create { phone, nickname, role, .. } => {
            // Before anybody types a password twice.
            phone.parse::<Phone>().map_err(|error| anyhow::anyhow!("the phone {error}"))?;
            let id = access::create(&app, &phone, &read_password()?, &nickname, role).await.map_err(in_words)?;
            say(format!("made {phone} with the role {}: account {id}", role.as_str()))?;
        }
        AdminCommand::Role { phone, role, .. } => {
            let Changed { user, before, is_new } = access::set_role(&app, &phone, role).await.map_err(in_words)?;
            let whose = format!("{phone} ({})", user.nickname);
            say(match (before, role) {
                _ if !is_new => format!("{whose} has the role {} already", role.as_str()),
                (_, Role::User) => format!("{whose} has no role any more, from now on"),
                (Role::User, _) => {
                    format!("{whose} has the role {}; running logins see it after their next refresh", role.as_str())
                }
                _ => format!("{whose} has the role {} now, in running logins too", role.as_str()),
            })?;
        }
        AdminCommand::Disable { phone, .. } => {
            let Changed { user, is_new, .. } = access::disable(&app, &phone).await.map_err(in_words)?;
            let what = if is_new { "is disabled: all its logins are over" } else { "is disabled already" };
            say(format!("{phone} ({}) {what}", user.nickname))?;
        }
        AdminCommand::Enable { phone, .. } => {
            let Changed { user, is_new, .. } = access::enable(&app, &phone).await.map_err(in_words)?;
            let what = if is_new { "may log in again" } else { "was not disabled" };
            say(format!("{phone} ({}) {what}", user.nickname))?;
        }
        AdminCommand::List { .. } => {
            let accounts = access::list(&app).await.map_err(in_words)?;
            if accounts.is_empty() {
                say("no account has a role: make one with `onrush admin create --role admin --phone …`")?;
            }
            for StaffAccount { user, is_disabled } in accounts {
                let disabled = if is_disabled { "  disabled" } else { "" };
                say(format!(
                    "{:<8}  {}  {}  {}{disabled}",
                    user.role.as_str(),
                    user.phone.as_str(),
                    user.id,
                    user.nickname
                ))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A refusal as a person at a terminal reads it.
fn in_words(error: Error) -> anyhow::Error {
    match error {
        Error::Refused(refusal) if !refusal.errors.is_empty() => {
            let words = refusal.errors.iter().map(|fault| format!("the {} {}", fault.field, fault.message));
            anyhow::anyhow!(words.collect::<Vec<_>>().join("; "))
        }
        Error::Refused(refusal) if !refusal.detail.is_empty() => anyhow::anyhow!(refusal.detail),
        other => other.into(),
    }
}

/// Asks for the password twice at a terminal; else the first line of what is piped in.
fn read_password() -> anyhow::Result<String> {
    if !std::io::stdin().is_terminal() {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).context("reading the password from standard input")?;
        let password = line.trim_end_matches(['\n', '\r']).to_owned();
        anyhow::ensure!(!password.is_empty(), "the first line of standard input is the password, and it is empty");
        return Ok(password);
    }
    let password = rpassword::prompt_password("Password: ").context("reading the password")?;
    let again = rpassword::prompt_password("Again: ").context("reading the password")?;
    anyhow::ensure!(password == again, "the two passwords are not the same");
    Ok(password)
}
