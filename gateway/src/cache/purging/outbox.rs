//! What other nodes are still to be told.
//!
//! Nothing of it is lost but with the node, and it takes bounded memory all the same: where clients of a tenant make
//! more invalid than there is room for, others purge all that is this tenant's.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    mem,
};

use parking_lot::Mutex;
use seiketsu_cache::{key::Digest, purge::Purge};
use tokio::sync::{Notify, oneshot};

/// Purges of operators that wait.
const MOST_LETTERS: usize = 10_000;
/// URLs of one tenant that wait. Who makes more invalid takes no room of others.
const SHARE: usize = 1000;
/// URLs of all tenants that wait.
const MOST_URLS: usize = 100 * SHARE;
/// Letters of one round trip; one tenant's share more at most.
const AT_ONCE: usize = 500;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

/// A purge for others, and who wants to know that it has been sent.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) tenant: Box<str>,
    pub(super) purge: Purge,
    pub(super) sent: Option<oneshot::Sender<()>>,
}

/// There is no room for what clients have made invalid: all that is the tenant's will be purged at others.
#[derive(Debug, PartialEq)]
pub(super) struct Full {
    /// There was room until now.
    is_new: bool,
}

#[derive(Debug, Default)]
struct Waiting {
    /// By operators, who do not wait for clients.
    letters: VecDeque<Letter>,
    /// By clients, whose purges are of URLs alone, by tenant. They are in no order: each purges what is stored when it
    /// is heard.
    invalid: HashMap<Box<str>, Invalid>,
    /// The tenants in `invalid`, in their order.
    turns: VecDeque<Box<str>>,
    /// How many there are in `invalid`.
    urls: usize,
}

#[derive(Debug)]
enum Invalid {
    Urls(HashSet<Digest>),
    All,
}

impl Outbox {
    /// A purge by an operator, who hears when it is sent. An error: it is not sent by itself, for want of room.
    pub(super) fn put(&self, tenant: &str, purge: Purge) -> oneshot::Receiver<()> {
        let (sent, was_sent) = oneshot::channel();
        let letter = Letter { tenant: tenant.into(), purge, sent: Some(sent) };
        // Without room the letter is dropped, and with it who would have said that it is sent.
        let _ = self.fill(tenant, |waiting| waiting.put(letter));
        was_sent
    }

    /// What a client has made invalid.
    pub(super) fn add(&self, tenant: &str, url: Digest) -> Result<(), Full> {
        self.fill(tenant, |waiting| waiting.add(tenant, url))
    }

    fn fill(&self, tenant: &str, fill: impl FnOnce(&mut Waiting) -> Result<(), Full>) -> Result<(), Full> {
        let filled = fill(&mut self.waiting.lock());
        self.filled.notify_one();
        if filled == Err(Full { is_new: true }) {
            tracing::warn!(tenant, "more is purged than other nodes can be told: they will purge all of this tenant");
        }
        filled
    }

    /// What goes to others next, once there is something.
    pub(super) async fn next(&self) -> Vec<Letter> {
        loop {
            let letters = self.waiting.lock().take();
            if !letters.is_empty() {
                return letters;
            }
            self.filled.notified().await;
        }
    }
}

impl Waiting {
    fn put(&mut self, letter: Letter) -> Result<(), Full> {
        if self.letters.len() >= MOST_LETTERS {
            return Err(self.give_up(&letter.tenant));
        }
        self.letters.push_back(letter);
        Ok(())
    }

    fn add(&mut self, tenant: &str, url: Digest) -> Result<(), Full> {
        let has_room = self.urls < MOST_URLS;
        match self.of(tenant) {
            Invalid::Urls(urls) if urls.contains(&url) => Ok(()),
            Invalid::Urls(urls) if has_room && urls.len() < SHARE => {
                urls.insert(url);
                self.urls += 1;
                Ok(())
            }
            _ => Err(self.give_up(tenant)),
        }
    }

    /// Others will purge all that is the tenant's.
    fn give_up(&mut self, tenant: &str) -> Full {
        match mem::replace(self.of(tenant), Invalid::All) {
            Invalid::Urls(urls) => {
                self.urls -= urls.len();
                Full { is_new: true }
            }
            Invalid::All => Full { is_new: false },
        }
    }

    fn of(&mut self, tenant: &str) -> &mut Invalid {
        self.invalid.entry(tenant.into()).or_insert_with(|| {
            self.turns.push_back(tenant.into());
            Invalid::Urls(HashSet::new())
        })
    }

    fn take(&mut self) -> Vec<Letter> {
        let operators = self.letters.len().min(AT_ONCE);
        let mut taken: Vec<Letter> = self.letters.drain(..operators).collect();
        while taken.len() < AT_ONCE
            && let Some(tenant) = self.turns.pop_front()
        {
            let letter = |purge| Letter { tenant: tenant.clone(), purge, sent: None };
            match self.invalid.remove(&tenant) {
                Some(Invalid::Urls(urls)) => {
                    self.urls -= urls.len();
                    taken.extend(urls.into_iter().map(|url| letter(Purge::Url(url))));
                }
                Some(Invalid::All) => taken.push(letter(Purge::All)),
                None => {}
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(number: usize) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    /// So many letters for these tenants, of which so many are for all that is theirs.
    fn taken(waiting: &mut Waiting) -> Vec<(String, usize, usize)> {
        let mut all: Vec<(String, usize, usize)> = Vec::new();
        for letter in waiting.take() {
            if all.last().is_none_or(|(tenant, ..)| **tenant != *letter.tenant) {
                all.push((letter.tenant.to_string(), 0, 0));
            }
            if let Some((_, letters, whole)) = all.last_mut() {
                *letters += 1;
                *whole += usize::from(letter.purge == Purge::All);
            }
        }
        all
    }

    #[test]
    fn who_makes_very_much_invalid_is_purged_whole_and_nobody_else_is() {
        let mut waiting = Waiting::default();
        assert!((0..SHARE).all(|number| waiting.add("flood", url(number)).is_ok()));
        assert_eq!(waiting.add("flood", url(0)), Ok(()), "it waits already");
        assert_eq!(waiting.add("flood", url(SHARE)), Err(Full { is_new: true }));
        assert_eq!(waiting.add("flood", url(0)), Err(Full { is_new: false }));
        for number in 0..2 {
            assert_eq!(waiting.add("other", url(number)), Ok(()));
        }
        assert_eq!(taken(&mut waiting), [("flood".to_owned(), 1, 1), ("other".to_owned(), 2, 0)]);
        assert_eq!((waiting.urls, taken(&mut waiting)), (0, vec![]));
        // What was made invalid once these are on their way is told by itself.
        assert_eq!(waiting.add("flood", url(0)), Ok(()));
        assert_eq!(taken(&mut waiting), [("flood".to_owned(), 1, 0)]);
    }

    #[test]
    fn tenants_take_turns_and_operators_come_first() {
        let mut waiting = Waiting::default();
        for tenant in ["a", "b"] {
            assert!((0..SHARE).all(|number| waiting.add(tenant, url(number)).is_ok()));
        }
        assert_eq!(waiting.add("c", url(0)), Ok(()));
        let by_operator = || Letter { tenant: "o".into(), purge: Purge::Tag("t".into()), sent: None };
        assert_eq!(waiting.put(by_operator()), Ok(()));
        assert_eq!(taken(&mut waiting), [("o".to_owned(), 1, 0), ("a".to_owned(), SHARE, 0)]);
        assert_eq!(waiting.add("a", url(0)), Ok(()));
        assert_eq!(waiting.put(by_operator()), Ok(()));
        assert_eq!(taken(&mut waiting), [("o".to_owned(), 1, 0), ("b".to_owned(), SHARE, 0)]);
        assert_eq!(taken(&mut waiting), [("c".to_owned(), 1, 0), ("a".to_owned(), 1, 0)]);
    }

    #[test]
    fn where_there_is_no_room_at_all_nothing_is_lost_either() {
        let mut waiting = Waiting::default();
        for tenant in 0..MOST_URLS / SHARE {
            assert!((0..SHARE).all(|number| waiting.add(&tenant.to_string(), url(number)).is_ok()));
        }
        assert_eq!(waiting.add("late", url(0)), Err(Full { is_new: true }));
        let letters = || Letter { tenant: "late".into(), purge: Purge::Tag("t".into()), sent: None };
        assert!((0..MOST_LETTERS).all(|_| waiting.put(letters()).is_ok()));
        assert_eq!(waiting.put(Letter { tenant: "operated".into(), ..letters() }), Err(Full { is_new: true }));
        let mut whole = HashSet::new();
        while !waiting.turns.is_empty() {
            let letters = waiting.take().into_iter().filter(|letter| letter.purge == Purge::All);
            whole.extend(letters.map(|letter| letter.tenant.to_string()));
        }
        assert_eq!(whole, HashSet::from(["late".to_owned(), "operated".to_owned()]));
        assert_eq!(waiting.urls, 0);
    }
}
