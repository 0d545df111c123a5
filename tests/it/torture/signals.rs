//! What says that something is wrong, so that somebody is called: each fault has its signals, and one of them at least is
//! raised while it lasts. When all is well again, nothing says otherwise.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use reqwest::Method;
use tokio::time::sleep;

use super::faults::{Fault, Town};
use crate::signals::value_of;
use crate::support::{Client, Process};

/// Whoever asks waits so long for an answer.
const PATIENCE: Duration = Duration::from_secs(8);
/// Of one that is frozen or gone nobody expects one.
const NO_ANSWER: Duration = Duration::from_millis(400);
/// A signal is looked for this often.
const PERIOD: Duration = Duration::from_millis(100);

/// Of a log, so many lines are shown.
const LINES: usize = 40;

/// What says that something is wrong.
#[derive(Debug, Clone, Copy)]
pub enum Signal {
    /// `/readyz` answers 503, and this member has this in it.
    NotReady(&'static str, &'static str),
    /// A counter of a process rises: a series, or all of that name.
    Rises(&'static str),
    /// A process says so in its log.
    Says(&'static str),
    /// Requests are answered 503.
    Refuses,
    /// Orders take longer than half a second.
    Slow,
    /// The process does not answer, so that nobody can scrape it.
    NoAnswer,
    /// The process whose clock is wrong is not ready, and says why.
    WrongClock,
}

use Signal::{NoAnswer, NotReady, Refuses, Rises, Says, Slow, WrongClock};

/// A connection to MySQL was lost, or given up.
const LOST: Signal = Rises("onrush_mysql_connections_lost_total");
/// The subscription to ended tasks is lost with its connection.
const UNSUBSCRIBED: Signal = Rises("onrush_loop_failures_total{loop=\"listen\"}");
const UNUSABLE: Signal = Says("redis is not usable; connecting again");

impl Fault {
    /// One of these is raised while it lasts; where there is none, nobody notices anything, nor has to.
    pub const fn signals(self) -> &'static [Signal] {
        match self {
            Self::MySqlSilent | Self::MySqlDeaf | Self::MySqlMute => &[LOST],
            Self::MySqlReset | Self::MySqlCut | Self::CommitLost => &[LOST],
            Self::MySqlSlow => &[Slow],
            Self::MySqlReadOnly => &[NotReady("mysql", "read-only")],
            Self::MySqlFull => &[NotReady("mysql", "max_user_connections"), Says("max_user_connections")],
            Self::MySqlCrowded => &[NotReady("mysql", "Too many connections")],
            Self::MySqlKilled => &[NotReady("mysql", "")],
            Self::SchemaHeldUp => &[Refuses],
            Self::CommitRolledBack => &[Rises("onrush_transactions_run_again_total")],
            Self::RedisSilent | Self::RedisDeaf | Self::RedisMute => &[UNUSABLE],
            Self::RedisReset | Self::RedisKilled => &[UNSUBSCRIBED],
            Self::RedisHangs => &[NotReady("redis", "")],
            Self::RedisEmptied => &[Says("opened the gate of an activity")],
            Self::RedisFull => &[NotReady("redis", "OOM")],
            Self::StreamDeleted => &[Rises("onrush_tasks_lost_total{queue=\"system\"}")],
            Self::KeyWrittenOver => &[Rises("onrush_queue_faults_total{queue=\"late\"}")],
            Self::ClockAhead => &[WrongClock],
            Self::ProcessKilled | Self::ProcessFrozen | Self::ProcessStopped => &[NoAnswer],
            // One answer is as good as another, and a script that is not known is sent once more.
            Self::MySqlInPieces | Self::ScriptsForgotten => &[],
        }
    }
}

/// What the processes had said before.
pub struct Before(HashMap<String, (Option<Page>, usize)>);

/// A page of metrics.
struct Page(String);

impl Page {
    async fn of(client: &Client) -> Option<Self> {
        let asked = client.request(Method::GET, "/metrics", ()).timeout(PATIENCE).send().await.ok()?;
        asked.text().await.ok().map(Self)
    }

    /// The sum of a series, or of all of that name, that `fit`.
    fn sum(&self, name: &str, fit: impl Fn(&str) -> bool) -> f64 {
        let series = self.0.lines().filter(|line| line.starts_with(name) && fit(line));
        series.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    fn count(&self, signal: Signal) -> f64 {
        let of_orders = |line: &str| line.contains("route=\"/api/v1/orders");
        let slow = "onrush_http_request_duration_seconds";
        match signal {
            Rises(name) => self.sum(name, |_| true),
            Refuses => self.sum("onrush_http_requests_total{", |line| {
                line.contains("status=\"503\"") && line.contains("route=\"/api/")
            }),
            Slow => {
                let quick = |line: &str| of_orders(line) && line.contains("le=\"0.5\"");
                self.sum(&format!("{slow}_count{{"), of_orders) - self.sum(&format!("{slow}_bucket{{"), quick)
            }
            _ => 0.0,
        }
    }
}

impl Town {
    /// What the processes have said until now.
    pub async fn before(&self) -> Before {
        let mut all = HashMap::new();
        for process in &self.processes {
            all.insert(process.client.base.clone(), (Page::of(&process.client).await, process.log().len()));
        }
        Before(all)
    }

    /// Waits until one of its signals is raised, and for `long` at least; which one was.
    pub async fn is_told(
        &mut self,
        fault: Fault,
        before: &Before,
        long: Duration,
        patience: Duration,
    ) -> Option<Signal> {
        let (began, signals) = (Instant::now(), fault.signals());
        let mut told = None;
        while began.elapsed() < long || (told.is_none() && !signals.is_empty()) {
            if told.is_none() {
                self.press(fault).await;
                told = self.raised(signals, before).await;
            }
            let is_overdue = told.is_none() && !signals.is_empty() && began.elapsed() > patience;
            assert!(!is_overdue, "{fault:?} was told by none of {signals:?}\n{}", self.tails());
            sleep(PERIOD).await;
        }
        told
    }

    async fn raised(&self, signals: &[Signal], before: &Before) -> Option<Signal> {
        for signal in signals {
            let raised = match signal {
                NoAnswer => !answers(self.struck.as_ref()).await,
                WrongClock => match &self.wrong {
                    Some(wrong) => is_unready(&wrong.client, "clock", "ahead of").await,
                    None => false,
                },
                _ => self.some_process_tells(*signal, before).await,
            };
            if raised {
                return Some(*signal);
            }
        }
        None
    }

    /// What each process says of itself, and what its log says at its end.
    pub fn tails(&self) -> String {
        let tail = |process: &Process| {
            let log = process.log();
            let lines: Vec<&str> = log.lines().collect();
            format!("{}\n{}\n", process.client.base, lines[lines.len().saturating_sub(LINES)..].join("\n"))
        };
        self.processes.iter().map(tail).collect()
    }

    async fn some_process_tells(&self, signal: Signal, before: &Before) -> bool {
        for process in &self.processes {
            let Some((page, log)) = before.0.get(&process.client.base) else { continue };
            let tells = match signal {
                NotReady(member, why) => is_unready(&process.client, member, why).await,
                Says(what) => process.log().get(*log..).unwrap_or_default().contains(what),
                counted => match (page, Page::of(&process.client).await) {
                    (Some(page), Some(now)) => now.count(counted) > page.count(counted),
                    _ => false,
                },
            };
            if tells {
                return true;
            }
        }
        false
    }

    /// Whether nothing says any more that anything is wrong.
    pub async fn is_quiet(&self) -> bool {
        for process in &self.processes {
            let Some(page) = Page::of(&process.client).await else { return false };
            let up = ["mysql", "redis"].map(|server| format!("onrush_server_up{{server=\"{server}\"}}"));
            let is_well = value_of(&page.0, "onrush_ready") == Some(1.0)
                && up.iter().all(|series| value_of(&page.0, series) == Some(1.0))
                && page.sum("onrush_not_ready{", |_| true) == 0.0
                && page.sum("onrush_loops_stalled{", |_| true) == 0.0;
            if !is_well {
                return false;
            }
        }
        true
    }
}

async fn answers(client: Option<&Client>) -> bool {
    let Some(client) = client else { return true };
    client.request(Method::GET, "/metrics", ()).timeout(NO_ANSWER).send().await.is_ok()
}

async fn is_unready(client: &Client, member: &str, why: &str) -> bool {
    let asked = client.request(Method::GET, "/readyz", ()).timeout(PATIENCE).send().await;
    let Ok(answer) = asked else { return false };
    let status = answer.status();
    let body: serde_json::Value = answer.json().await.unwrap_or_default();
    let said = body[member].as_str().unwrap_or("ok");
    status == 503 && said != "ok" && said.contains(why)
}
