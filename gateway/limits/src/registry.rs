//! All leases of a gateway, found again when the configuration changes: limits that stay what they are keep
//! their leases.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use foldhash::quality::RandomState;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::{
    clock::Nanos,
    holdings::{Holdings, Limit, Places, Plan},
    node::{Node, REMINDED_AT_ONCE},
};

/// Callers that a keyed limit tells apart. Those that come when so many are there share one account: an
/// attacker who makes up values gains nothing by it. They make room once their accounts are as good as new:
/// buckets that are full again, quotas whose period is over.
pub const MOST_SUBJECTS: usize = 10_000;

/// How soon a new connection is noticed: well within the time for which nothing is given after a loss.
const REMINDER_TICK: Duration = Duration::from_millis(50);

/// The subjects of a keyed limit are spread over so many locks.
const SHARDS: usize = 16;

/// The holdings of all tenants.
#[derive(Debug)]
pub struct Registry {
    node: Arc<Node>,
    tenants: Mutex<HashMap<Arc<str>, Alive<Holdings>>>,
    keyed: Mutex<AllKeyed>,
}

/// Those that are in use, the newest last: while a configuration is looked at, and refused perhaps, former ones
/// stay in force.
type Alive<T> = Vec<Weak<T>>;

/// By tenant and id.
type AllKeyed = HashMap<(Arc<str>, Arc<str>), Alive<KeyedHoldings>>;

type Subjects = HashMap<Subject, Arc<Holdings>, RandomState>;

/// A part of the callers.
#[derive(Debug, Default)]
struct Shard {
    subjects: Subjects,
    /// Those of former limits, until they come again: the first of them goes on from there, also while the coordinator
    /// cannot be asked. They take up room like all others, so they are no more than there would be without a change.
    former: Subjects,
}

/// The holdings of each value of a key.
#[derive(Debug)]
pub struct KeyedHoldings {
    node: Arc<Node>,
    /// What holds for each of them; the keys of accounts get the subject appended.
    template: Plan,
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    others: Arc<Holdings>,
}

/// A hash of the value that callers are told apart by: the value itself, which may be a credential or
/// personal, is not kept or sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Subject([u8; 16]);

impl Registry {
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, tenants: Mutex::default(), keyed: Mutex::default() }
    }

    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// The tenant's holdings: those that it has, if the plan says nothing else than theirs.
    pub fn holdings(&self, plan: Plan) -> Arc<Holdings> {
        let mut tenants = self.tenants.lock();
        let present = alive(tenants.get(&plan.tenant));
        if let Some(same) = present.iter().find(|present| present.plan().says_the_same(&plan)) {
            let same = Arc::clone(same);
            drop(tenants);
            return same;
        }
        let holdings = Holdings::new(plan, &self.node);
        if let Some(former) = present.last() {
            holdings.go_on_from(former);
        }
        let is_new = add(tenants.entry(Arc::clone(&holdings.plan().tenant)).or_default(), &holdings);
        if is_new && tenants.len().is_power_of_two() {
            tenants.retain(|_, alive| alive.iter().any(|holdings| holdings.strong_count() > 0));
        }
        // Not under the lock: they may be the last references.
        drop(tenants);
        drop(present);
        holdings
    }

    /// The holdings of a keyed limit: those that are there, if nothing has changed.
    pub fn keyed(&self, id: &Arc<str>, template: Plan) -> Arc<KeyedHoldings> {
        let mut keyed = self.keyed.lock();
        let key = (Arc::clone(&template.tenant), Arc::clone(id));
        let present = alive(keyed.get(&key));
        if let Some(same) = present.iter().find(|present| present.template.says_the_same(&template)) {
            let same = Arc::clone(same);
            drop(keyed);
            return same;
        }
        let made = Arc::new(KeyedHoldings::new(template, &self.node, present.last().map(|former| &**former)));
        let is_new = add(keyed.entry(key).or_default(), &made);
        if is_new && keyed.len().is_power_of_two() {
            keyed.retain(|_, alive| alive.iter().any(|keyed| keyed.strong_count() > 0));
        }
        drop(keyed);
        drop(present);
        made
    }

    /// Tells the coordinator again what was spent of quotas, whenever the connection to it was made anew.
    /// Ends with the registry.
    pub async fn remind_after_losses(registry: Weak<Self>) {
        let mut ticks = tokio::time::interval(REMINDER_TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut known = 0;
        loop {
            ticks.tick().await;
            let Some(registry) = registry.upgrade() else { return };
            let connections = registry.node.coordinator.connections();
            // With the first one too: it may have lost what former processes of this gateway told it. Those in use
            // first: they may be asked for at any moment.
            if connections != known && registry.remind().await && registry.node.remind_of_former().await {
                known = connections;
                registry.node.coordinator.has_told(connections);
            }
        }
    }

    /// Whether all of it was heard.
    async fn remind(&self) -> bool {
        let mut all: Vec<Arc<Holdings>> = self.tenants.lock().values().flatten().filter_map(Weak::upgrade).collect();
        let keyed: Vec<_> = self.keyed.lock().values().flatten().filter_map(Weak::upgrade).collect();
        all.extend(keyed.iter().flat_map(|keyed| keyed.subjects()));
        // What was spent of anything else is told as soon, so that nobody is given it again.
        all.retain(|holdings| holdings.has_quotas() || holdings.has_debts());
        let is_heard = AtomicBool::new(true);
        let remind = |holdings: Arc<Holdings>| {
            let is_heard = &is_heard;
            async move {
                if !holdings.remind().await {
                    is_heard.store(false, Relaxed);
                }
            }
        };
        // Not all at once: each has its time-out.
        stream::iter(all).for_each_concurrent(REMINDED_AT_ONCE, remind).await;
        is_heard.into_inner()
    }

    /// Gives back everything that is not in use, for a gateway that ends.
    pub fn give_back(&self) {
        // Not under the lock: what is given back may be the last reference.
        let tenants: Vec<_> = self.tenants.lock().values().flatten().filter_map(Weak::upgrade).collect();
        for holdings in tenants {
            holdings.give_back();
        }
        let keyed: Vec<_> = self.keyed.lock().values().flatten().filter_map(Weak::upgrade).collect();
        for keyed in keyed {
            keyed.give_back();
        }
    }
}

fn alive<T>(all: Option<&Alive<T>>) -> Vec<Arc<T>> {
    all.into_iter().flatten().filter_map(Weak::upgrade).collect()
}

/// Whether it is the first one there.
fn add<T>(all: &mut Alive<T>, new: &Arc<T>) -> bool {
    let is_first = all.is_empty();
    all.retain(|one| one.strong_count() > 0);
    all.push(Arc::downgrade(new));
    is_first
}

impl KeyedHoldings {
    fn new(template: Plan, node: &Arc<Node>, former: Option<&Self>) -> Self {
        let others = Holdings::new(with_subject(&template, "others"), node);
        let (mut shards, mut hasher) = ((0..SHARDS).map(|_| Mutex::default()).collect(), RandomState::default());
        if let Some(former) = former {
            others.go_on_from(&former.others);
            shards = former.shards.iter().map(|shard| Mutex::new(shard.lock().to_former())).collect();
            hasher = former.hasher.clone();
        }
        Self { others, node: Arc::clone(node), template, shards, hasher }
    }

    /// The places of the limits that `chosen` says yes to; they are the same for all subjects.
    pub fn places(&self, chosen: impl Fn(&Limit) -> bool) -> Places {
        self.others.places(chosen)
    }

    /// The holdings of the callers that have this value.
    pub fn of(&self, value: &[u8], now: Nanos) -> Arc<Holdings> {
        let subject = Subject::of(value);
        let shard = usize::try_from(self.hasher.hash_one(subject)).unwrap_or_default() % SHARDS;
        let mut shard = self.shards[shard].lock();
        if let Some(holdings) = shard.subjects.get(&subject) {
            return Arc::clone(holdings);
        }
        let former = shard.former.remove(&subject);
        if former.is_none() && !shard.has_room(now) {
            return Arc::clone(&self.others);
        }
        let holdings = Holdings::new(with_subject(&self.template, &subject.to_string()), &self.node);
        if let Some(former) = &former {
            holdings.go_on_from(former);
        }
        shard.subjects.insert(subject, Arc::clone(&holdings));
        // Not under the lock: it may be the last reference.
        drop(shard);
        drop(former);
        holdings
    }

    fn subjects(&self) -> Vec<Arc<Holdings>> {
        let mut all = vec![Arc::clone(&self.others)];
        for shard in &self.shards {
            let shard = shard.lock();
            all.extend(shard.subjects.values().chain(shard.former.values()).cloned());
        }
        all
    }

    fn give_back(&self) {
        for holdings in self.subjects() {
            holdings.give_back();
        }
    }
}

impl Shard {
    /// For other limits.
    fn to_former(&self) -> Self {
        let mut former = self.former.clone();
        former.extend(self.subjects.iter().map(|(subject, holdings)| (*subject, Arc::clone(holdings))));
        Self { subjects: Subjects::default(), former }
    }

    /// Whether there is room for one more; makes some if it can.
    fn has_room(&mut self, now: Nanos) -> bool {
        let most = MOST_SUBJECTS / SHARDS;
        if self.subjects.len() + self.former.len() >= most {
            self.subjects.retain(|_, holdings| Arc::strong_count(holdings) > 1 || !holdings.is_as_new(now));
            // Those are held by the former limits too, for as long as a request goes on that began with them.
            self.former.retain(|_, holdings| !holdings.is_as_new(now));
        }
        self.subjects.len() + self.former.len() < most
    }
}

impl Subject {
    fn of(value: &[u8]) -> Self {
        let mut subject = [0; 16];
        subject.copy_from_slice(&Sha256::digest(value)[..16]);
        Self(subject)
    }
}

/// In hexadecimal.
impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn with_subject(template: &Plan, subject: &str) -> Plan {
    let of_subject = |limit: &Limit| Limit { key: format!("{}/{subject}", limit.key).into(), ..limit.clone() };
    Plan { limits: template.limits.iter().map(of_subject).collect(), ..template.clone() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Instant;

    use tokio::runtime::Handle;

    use super::*;
    use crate::{
        admission::{Applying, Decision, decide},
        clock::Clock,
        coordinator::MemoryCoordinator,
        holdings::{Kind, Unreachable},
        terms::Bucket,
    };

    /// One token for each caller, every so often.
    fn keyed(period: Duration) -> (Registry, Arc<KeyedHoldings>) {
        let node = Node::start(Arc::new(MemoryCoordinator::new(None)), None, "test", Clock::new(), &Handle::current());
        let registry = Registry::new(node);
        let keyed = registry.keyed(&"each".into(), plan(1, period));
        (registry, keyed)
    }

    fn plan(tokens: u64, period: Duration) -> Plan {
        let bucket = Kind::Bucket(Bucket::new(tokens, period, 1).unwrap());
        let limit = Limit { name: "each-rate".into(), key: "keyed/each/rate".into(), kind: bucket };
        Plan { tenant: "acme".into(), revision: 1, limits: vec![limit], unreachable: Unreachable::Share }
    }

    async fn passes(registry: &Registry, keyed: &KeyedHoldings, caller: usize) -> bool {
        let holdings = keyed.of(&caller.to_be_bytes(), registry.node().clock().now());
        let places = keyed.places(|_| true);
        let applying = [Applying::new(&holdings, &places)];
        matches!(decide(&applying, 1, false, registry.node()).await, Decision::Admitted { .. })
    }

    async fn passing(registry: &Registry, keyed: &KeyedHoldings, callers: std::ops::Range<usize>) -> usize {
        let mut passing = 0;
        for caller in callers {
            passing += usize::from(passes(registry, keyed, caller).await);
        }
        passing
    }

    #[tokio::test]
    async fn whoever_makes_values_up_has_no_more_accounts_than_there_are() {
        let (registry, keyed) = keyed(Duration::from_hours(1));
        let passed = passing(&registry, &keyed, 0..2 * MOST_SUBJECTS).await;
        assert!((MOST_SUBJECTS * 9 / 10..=MOST_SUBJECTS + 1).contains(&passed), "{passed}");
        assert_eq!(passing(&registry, &keyed, 0..3 * MOST_SUBJECTS).await, 0);
    }

    #[tokio::test]
    async fn callers_of_former_limits_take_no_room_beside_what_there_is() {
        let hour = Duration::from_hours(1);
        let (registry, mut keyed) = keyed(hour);
        for tokens in 2..5 {
            let callers = tokens * MOST_SUBJECTS..(tokens + 1) * MOST_SUBJECTS;
            passing(&registry, &keyed, callers).await;
            keyed = registry.keyed(&"each".into(), plan(tokens as u64, hour));
            let there = keyed.subjects().len();
            assert!((MOST_SUBJECTS * 9 / 10..=MOST_SUBJECTS + 1).contains(&there), "{there}");
        }
    }

    #[tokio::test]
    async fn callers_that_have_not_come_for_a_while_make_room_for_others() {
        let (registry, keyed) = keyed(Duration::from_secs(1));
        passing(&registry, &keyed, 0..2 * MOST_SUBJECTS).await;
        // Those of former limits too, though a request goes on that began with them.
        let changed = registry.keyed(&"each".into(), plan(2, Duration::from_secs(1)));
        for keyed in [&changed, &keyed] {
            let until = Instant::now() + Duration::from_mins(1);
            let share = |a: usize, b: usize| {
                let now = registry.node().clock().now();
                Arc::ptr_eq(&keyed.of(&a.to_be_bytes(), now), &keyed.of(&b.to_be_bytes(), now))
            };
            let mut next = 3 * MOST_SUBJECTS;
            while share(next, next + 1) {
                assert!(Instant::now() < until, "nobody has made room");
                next += 2;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
