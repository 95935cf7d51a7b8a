//! The scripts; and of the one that does an exchange, what it is told, and what it answers.

use std::{sync::LazyLock, time::Duration};

use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, aio::ConnectionLike};

use super::elsewhere::{self, Account};
use crate::{
    coordinator::{Answer, CoordinatorError, Exchange, LEASE_TIME, Outcome, Pace, Request, SLOT_LEASE_TIME},
    ledger::{AGAIN, KEPT, SETTLED_AFTER, TOLD_SOON, TOLD_WITHIN},
    terms::Terms,
};

/// The largest integer that the script counts exactly; larger ones are sent as this.
const MAX_EXACT: u64 = (1 << 53) - 1;

/// Of each account: outcome, tokens or wait, ends, left; what is promised: rate, unit, when to ask again.
const NUMBERS_PER_ANSWER: usize = 7;

pub(super) static ACQUIRE: LazyLock<Script> = LazyLock::new(|| Script::new(text()));

pub(super) static HEARTBEAT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("heartbeat.lua").to_owned()));

pub(super) static WHOLE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("whole.lua").to_owned()));

/// A script, called by its hash, and loaded where it is not known yet.
pub(super) struct Script {
    text: String,
    hash: String,
}

impl Script {
    fn new(text: String) -> Self {
        let hash = redis::Script::new(&text).get_hash().to_owned();
        Self { text, hash }
    }

    /// Has it run with these arguments: the number of keys, the keys, and the others.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        connection: &mut impl ConnectionLike,
        arguments: &[String],
    ) -> Result<T, RedisError> {
        let command = |name: &str, script: &str| {
            let mut command = Cmd::new();
            command.arg(name).arg(script).arg(arguments);
            command
        };
        match command("EVALSHA", &self.hash).query_async(connection).await {
            // This loads it too, and goes to the very server that lacks it.
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                command("EVAL", &self.text).query_async(connection).await
            }
            result => result,
        }
    }
}

/// The script of an exchange, with the times that it and the ledger have in common.
pub fn text() -> String {
    let times = [LEASE_TIME, SLOT_LEASE_TIME, KEPT, SETTLED_AFTER, AGAIN, TOLD_WITHIN, TOLD_SOON]
        .map(|time| micros(time).to_string())
        .join(", ");
    let names = "local LEASE_TIME, SLOT_LEASE_TIME, KEPT, SETTLED_AFTER, AGAIN, TOLD_WITHIN, TOLD_SOON";
    format!("{names} = {times}\n{}", include_str!("acquire.lua"))
}

/// The number of keys, the keys, and what the script is told.
///
/// `session` and `number` tell messages of the same reporter apart: within a session, a later one has a higher
/// number. `told` are the ids of processes that all gateways have told what they know of quotas. `asker` is the reporter
/// for whom it is told what is known elsewhere; else empty.
///
/// # Errors
/// If the reporter's name has other characters than letters, digits, dots, dashes and underscores.
pub fn arguments(
    exchange: &Exchange,
    session: &str,
    number: u64,
    live: u64,
    told: &str,
    asker: &str,
) -> Result<Vec<String>, CoordinatorError> {
    let Exchange { tenant, reporter, revision, accounts } = exchange;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if reporter.is_empty() || !reporter.chars().all(is_plain) {
        return Err(CoordinatorError::Malformed(format!("a reporter named {reporter:?}")));
    }
    let mut arguments = Vec::with_capacity(8 + accounts.len() * 12);
    arguments.push(accounts.len().to_string());
    arguments.extend(accounts.iter().map(|account| key(tenant, &account.key)));
    arguments.extend([reporter.to_string(), session.to_owned()]);
    arguments.extend([number, *revision, live.max(1)].map(exact));
    let has_quotas = accounts.iter().any(|account| matches!(account.terms, Terms::Quota { .. }));
    arguments.push(if has_quotas { told.to_owned() } else { String::new() });
    arguments.push(asker.to_owned());
    for account in accounts {
        add_account(&mut arguments, account);
    }
    Ok(arguments)
}

/// What the script is told that finds out whether an account may have less than was used.
pub(super) fn whole(account: &Account) -> [String; 5] {
    let Account { tenant, key: name, starts, .. } = account;
    ["2".to_owned(), key(tenant, name), key(tenant, "known"), exact(*starts), exact(micros(elsewhere::KEPT))]
}

/// All of a tenant are on one server of a cluster.
fn key(tenant: &str, name: &str) -> String {
    format!("seiketsu:{{{tenant}}}:{name}")
}

fn add_account(arguments: &mut Vec<String>, account: &Request) {
    let (kind, terms) = match account.terms {
        Terms::Bucket(bucket) => ("bucket", [bucket.tokens(), micros(bucket.period()), bucket.burst()]),
        Terms::Quota { limit, starts, ends } => ("quota", [limit, starts, ends]),
        Terms::Slots { limit } => ("slots", [limit, 0, 0]),
    };
    let Request { spent, held, known, has_ended, want, least, paced, .. } = *account;
    arguments.push(kind.to_owned());
    arguments.extend(terms.map(exact));
    arguments.extend([spent, held, known.into(), has_ended.into(), want, least, paced.into()].map(exact));
}

/// What the script answered for so many accounts.
///
/// # Errors
/// [`Malformed`](CoordinatorError::Malformed) if it is something else. [`TimedOut`](CoordinatorError::TimedOut)
/// if a later message was carried out before this one.
pub fn answers(numbers: &[u64], accounts: usize) -> Result<Vec<Answer>, CoordinatorError> {
    let malformed = || CoordinatorError::Malformed(format!("{numbers:?} for {accounts} accounts"));
    let (now, answers) = numbers.split_first().ok_or_else(malformed)?;
    let (answers, rest) = answers.as_chunks::<NUMBERS_PER_ANSWER>();
    if answers.len() != accounts || !rest.is_empty() {
        return Err(malformed());
    }
    let answer = |[outcome, amount, ends_in, left, rate, unit, again_in]: &[u64; NUMBERS_PER_ANSWER]| {
        let ends_in = Duration::from_micros(*ends_in);
        let wait = Duration::from_micros(*amount);
        let outcome = match outcome {
            0 => Outcome::Granted { tokens: *amount, ends_in },
            1 => Outcome::NoneUntil { wait, ends_in },
            2 => Outcome::Recovering { wait },
            3 => Outcome::OtherPeriod,
            4 => return Err(CoordinatorError::TimedOut),
            _ => return Err(malformed()),
        };
        let pace = Pace { rate: *rate, unit: *unit, again_in: Duration::from_micros(*again_in) };
        Ok(Answer { outcome, pace, left: *left, now: *now })
    };
    answers.iter().map(answer).collect()
}

fn exact(number: u64) -> String {
    number.min(MAX_EXACT).to_string()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
