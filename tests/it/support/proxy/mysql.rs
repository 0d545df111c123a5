//! What is said to MySQL: enough of its protocol to know each command, its text, and where its answer begins.
//!
//! A packet is three bytes of length, one of its number, and the rest. A client's packet with number 0 is a command;
//! the server's first packet after it begins the answer. Nobody here sends a command before the last one was answered,
//! but for those that have no answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

/// A trap that does not spring within this long fails its test.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    Query,
    Prepare,
    Execute,
    Close,
    Ping,
    Quit,
    Other(u8),
}

impl Verb {
    const fn of(byte: u8) -> Self {
        match byte {
            0x01 => Self::Quit,
            0x03 => Self::Query,
            0x0e => Self::Ping,
            0x16 => Self::Prepare,
            0x17 => Self::Execute,
            0x19 => Self::Close,
            other => Self::Other(other),
        }
    }

    /// Whether the client waits for an answer (`COM_STMT_SEND_LONG_DATA`, 0x18, has none either).
    pub fn is_answered(self) -> bool {
        !matches!(self, Self::Close | Self::Quit | Self::Other(0x18))
    }
}

/// What a client told MySQL to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// On which connection, counted from 0.
    pub link: usize,
    pub verb: Verb,
    /// The statement; of one that was prepared before, too.
    pub text: String,
}

/// Where a statement is lost, such as a COMMIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostAt {
    /// MySQL never hears of it: the connection ends, and its transaction is rolled back.
    Request,
    /// MySQL has done it, and the connection ends before its answer.
    Answer,
}

/// What a trap does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    Hold,
    Lose(LostAt),
    Deadlock,
}

/// To which statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// The one with the text.
    Itself,
    /// The COMMIT of a transaction in which there was one with the text, or several in a row, a line each.
    ItsCommit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Set,
    Sprung,
    Over,
}

pub(super) struct Snare {
    text: String,
    deed: Deed,
    to: To,
    stage: watch::Sender<Stage>,
}

impl Snare {
    pub(super) async fn is_let_go(&self) {
        let _ = self.stage.subscribe().wait_for(|stage| *stage == Stage::Over).await;
    }

    /// Whether it springs now: it does so once.
    fn springs(&self) -> bool {
        self.stage.send_if_modified(|stage| {
            let set = *stage == Stage::Set;
            if set {
                *stage = Stage::Sprung;
            }
            set
        })
    }
}

/// Something that happens to one statement. It is off, and lets go of what it holds, when it is dropped.
pub struct Trap(Arc<Snare>);

impl Trap {
    /// Waits until the statement has come: it is held; its COMMIT is lost; its client is told of a deadlock.
    #[track_caller]
    pub fn sprung(&self) -> impl Future<Output = ()> + '_ {
        let caller = std::panic::Location::caller();
        async move {
            let mut stage = self.0.stage.subscribe();
            let sprung = tokio::time::timeout(PATIENCE, stage.wait_for(|stage| *stage != Stage::Set)).await;
            assert!(sprung.is_ok(), "{caller}: nothing had {:?} in it within {PATIENCE:?}", self.0.text);
        }
    }

    /// Whether the statement has come.
    pub fn has_sprung(&self) -> bool {
        *self.0.stage.borrow() != Stage::Set
    }

    /// The statement that is held goes on its way.
    pub fn let_go(&self) {
        self.0.stage.send_replace(Stage::Over);
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Follows all connections of a proxy.
#[derive(Default)]
pub(super) struct Follower {
    commands: Mutex<Vec<Command>>,
    snares: Mutex<Vec<Arc<Snare>>>,
}

impl Follower {
    pub(super) fn commands(&self) -> Vec<Command> {
        self.commands.lock().unwrap().clone()
    }

    pub(super) fn forget_commands(&self) {
        self.commands.lock().unwrap().clear();
    }

    pub(super) fn set(&self, deed: Deed, to: To, text: &str) -> Trap {
        let snare = Arc::new(Snare { text: text.to_owned(), deed, to, stage: watch::Sender::new(Stage::Set) });
        let mut snares = self.snares.lock().unwrap();
        snares.retain(|snare| *snare.stage.borrow() == Stage::Set);
        snares.push(snare.clone());
        Trap(snare)
    }

    pub(super) fn conversation(self: Arc<Self>, link: usize) -> Mutex<Conversation> {
        Mutex::new(Conversation {
            follower: self,
            link,
            said: Vec::new(),
            prepared: HashMap::new(),
            transaction: Vec::new(),
            awaited: None,
            answer: Vec::new(),
        })
    }

    /// The first that springs of those that are `fit`.
    fn spring(&self, fit: impl Fn(&Snare) -> bool) -> Option<Arc<Snare>> {
        self.snares.lock().unwrap().iter().find(|snare| fit(snare) && snare.springs()).cloned()
    }
}

/// What becomes of what the client said.
pub(super) enum Said {
    Pass(Vec<u8>),
    /// Nothing goes on before this lets go.
    Wait(Arc<Snare>),
    /// The connection ends here.
    Lost,
}

/// Why the beginning of an answer is of interest.
enum Awaited {
    /// It names the statement with this text.
    Prepared(String),
    /// When it says that the statement is done, it is lost.
    Lost,
    /// The answer to a ROLLBACK: the client hears of a deadlock.
    Deadlock,
}

/// One connection.
pub(super) struct Conversation {
    follower: Arc<Follower>,
    link: usize,
    /// The beginning of a packet.
    said: Vec<u8>,
    prepared: HashMap<u32, String>,
    /// The texts of the open transaction.
    transaction: Vec<String>,
    awaited: Option<Awaited>,
    /// The beginning of an awaited answer.
    answer: Vec<u8>,
}

impl Conversation {
    /// Takes what came from the client.
    pub(super) fn said(&mut self, bytes: &[u8]) -> Vec<Said> {
        self.said.extend_from_slice(bytes);
        let (mut all, mut pass) = (Vec::new(), Vec::new());
        while let Some(length) = packet(&self.said) {
            let packet: Vec<u8> = self.said.drain(..length).collect();
            if packet[3] != 0 || packet.len() < 5 {
                pass.extend(packet);
                continue;
            }
            let command = self.command(&packet[4..]);
            self.follower.commands.lock().unwrap().push(command.clone());
            let Some(snare) = self.trapped(&command) else {
                // A close may come before the answer to the command before it.
                if command.verb.is_answered() {
                    self.awaited = (command.verb == Verb::Prepare).then_some(Awaited::Prepared(command.text));
                }
                pass.extend(packet);
                continue;
            };
            match snare.deed {
                Deed::Hold => {
                    all.push(Said::Pass(std::mem::take(&mut pass)));
                    all.push(Said::Wait(snare));
                    pass.extend(packet);
                }
                Deed::Deadlock => {
                    self.awaited = Some(Awaited::Deadlock);
                    self.transaction.clear();
                    pass.extend(query("ROLLBACK"));
                }
                Deed::Lose(LostAt::Answer) => {
                    self.awaited = Some(Awaited::Lost);
                    pass.extend(packet);
                }
                Deed::Lose(LostAt::Request) => {
                    all.push(Said::Lost);
                    return all;
                }
            }
        }
        all.push(Said::Pass(pass));
        all
    }

    fn command(&mut self, payload: &[u8]) -> Command {
        let verb = Verb::of(payload[0]);
        let id = || payload.get(1..5).and_then(|id| id.try_into().ok()).map(u32::from_le_bytes);
        let text = match verb {
            Verb::Query | Verb::Prepare => String::from_utf8_lossy(&payload[1..]).into_owned(),
            Verb::Execute => id().and_then(|id| self.prepared.get(&id).cloned()).unwrap_or_default(),
            Verb::Close => id().and_then(|id| self.prepared.remove(&id)).unwrap_or_default(),
            _ => String::new(),
        };
        Command { link: self.link, verb, text }
    }

    /// What happens to a statement that is to be run, if anything.
    fn trapped(&mut self, command: &Command) -> Option<Arc<Snare>> {
        if !matches!(command.verb, Verb::Query | Verb::Execute) {
            return None;
        }
        let text = command.text.as_str();
        let within = match text {
            "COMMIT" | "ROLLBACK" => std::mem::take(&mut self.transaction),
            _ => Vec::new(),
        };
        if text == "BEGIN" {
            self.transaction.clear();
        }
        if within.is_empty() {
            self.transaction.push(text.to_owned());
        }
        self.follower.spring(|snare| match snare.to {
            To::Itself => text.contains(&snare.text),
            To::ItsCommit => text == "COMMIT" && within.join("\n").contains(&snare.text),
        })
    }

    /// Takes what came from the server, and gives what the client may hear; `None` when the connection is to end.
    pub(super) fn answered(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        if self.awaited.is_none() {
            return Some(bytes.to_vec());
        }
        self.answer.extend_from_slice(bytes);
        let Some(length) = packet(&self.answer) else { return Some(Vec::new()) };
        let answer = std::mem::take(&mut self.answer);
        let is_ok = answer.get(4) == Some(&0);
        match self.awaited.take() {
            Some(Awaited::Prepared(text)) if is_ok => {
                if let Some(id) = answer.get(5..9).and_then(|id| id.try_into().ok()) {
                    self.prepared.insert(u32::from_le_bytes(id), text);
                }
                Some(answer)
            }
            Some(Awaited::Lost) if is_ok => None,
            Some(Awaited::Deadlock) => {
                let rest = answer.get(length..).unwrap_or_default();
                Some([&deadlock(answer[3])[..], rest].concat())
            }
            _ => Some(answer),
        }
    }
}

/// The length of the packet at the beginning of `bytes`, if it is there whole.
fn packet(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<4>()?;
    let length = 4 + (usize::from(header[0]) | usize::from(header[1]) << 8 | usize::from(header[2]) << 16);
    (bytes.len() >= length).then_some(length)
}

fn write(number: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
    [&length[..3], &[number], payload].concat()
}

fn query(text: &str) -> Vec<u8> {
    write(0, &[&[0x03], text.as_bytes()].concat())
}

/// `ER_LOCK_DEADLOCK`, as both servers write it.
fn deadlock(number: u8) -> Vec<u8> {
    let text = "#40001Deadlock found when trying to get lock; try restarting transaction";
    write(number, &[&[0xff], &1213u16.to_le_bytes()[..], text.as_bytes()].concat())
}
