//! Whether a request may pass: all limits that apply admit it, or none has anything taken from it.

use std::{sync::Arc, time::Duration};

use smallvec::SmallVec;

use crate::{
    clock::Nanos,
    holdings::{Found, Holdings, Place, Took, Verdict},
    lease::Taken,
    node::{Counters, Node, after},
};

/// How often a request tries to take a token that was made for it.
const MOST_TRIES: u32 = 100;
/// What is waited for no longer is asked for so often once more.
const FEW_TRIES: u32 = 3;

/// The limits of one plan that apply to a request.
#[derive(Debug, Clone, Copy)]
pub struct Applying<'a> {
    pub holdings: &'a Arc<Holdings>,
    pub places: &'a [Place],
}

impl<'a> Applying<'a> {
    pub fn new(holdings: &'a Arc<Holdings>, places: &'a [Place]) -> Self {
        Self { holdings, places }
    }
}

/// What became of a request.
#[derive(Debug)]
pub enum Decision {
    Admitted {
        by: By,
        admitted: Admitted,
    },
    /// This limit, of those that apply, does not admit it before this time has passed.
    Refused {
        by: By,
        applying: usize,
        place: Place,
        wait: Duration,
    },
    /// The coordinator cannot be reached, and nothing is to be admitted without it.
    Unavailable,
}

/// What a decision was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// What was at hand.
    Lease,
    /// The coordinator, which the request waited for.
    Coordinator,
    /// This gateway alone, since the coordinator could not be reached.
    Alone,
}

/// What a request holds while it lasts: slots go back when this is dropped.
#[derive(Debug, Default)]
pub struct Admitted {
    took: SmallVec<[(Arc<Holdings>, Took); 2]>,
}

impl Admitted {
    /// Gives back what was taken beside slots: the request does not count after all.
    pub fn refund(&mut self) {
        self.put_back_where(|place| !place.is_slots());
    }

    /// Gives back what was taken of quotas. What it cost in rates, it did cost.
    pub fn refund_quotas(&mut self) {
        self.put_back_where(Place::is_quota);
    }

    /// The request has switched protocols: gives back what it held only until then.
    pub fn has_upgraded(&mut self) {
        self.put_back_where(Place::is_until_upgrade);
    }

    fn put_back_where(&mut self, chosen: impl Fn(Place) -> bool) {
        self.took.retain(|(holdings, took)| {
            let is_chosen = chosen(took.place);
            if is_chosen {
                holdings.put_back(*took);
            }
            !is_chosen
        });
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        for (holdings, took) in &self.took {
            if took.place.is_slots() {
                holdings.put_back(*took);
            }
        }
    }
}

/// Decides with what is at hand, if that is possible: a few nanoseconds for each limit.
///
/// `refundable` says whether anything may be refunded. `now` is the time by the node's clock, which
/// the caller mostly has.
pub fn decide_now(applying: &[Applying<'_>], cost: u64, refundable: bool, node: &Node, now: Nanos) -> Option<Decision> {
    match take_all(applying, &[], cost, refundable, now) {
        Ok(admitted) => {
            Counters::count(&node.counters.local);
            Some(Decision::Admitted { by: By::Lease, admitted })
        }
        Err(short) => {
            let until = short.until?;
            Counters::count(&node.counters.local);
            Some(refused(By::Lease, &short, until, now))
        }
    }
}

/// Decides, and waits for the coordinator where what is at hand does not suffice.
pub async fn decide(applying: &[Applying<'_>], cost: u64, refundable: bool, node: &Node) -> Decision {
    let start = node.clock().now();
    let deadline = after(start, node.patience());
    let mut by = By::Lease;
    let mut tries = 0;
    // Limits that need not be asked: the coordinator is away, and they admit everything.
    let mut passed: SmallVec<[(usize, Place); 2]> = SmallVec::new();
    loop {
        let now = node.clock().now();
        let short = match take_all(applying, &passed, cost, refundable, now) {
            Ok(admitted) => {
                count(by, node);
                return Decision::Admitted { by, admitted };
            }
            Err(short) => short,
        };
        if let Some(until) = short.until {
            count(by, node);
            return refused(by, &short, until, now);
        }
        let Some(asked) = applying.get(short.applying) else { return Decision::Unavailable };
        if now < deadline && !asked.holdings.is_alone(now) {
            by = By::Coordinator;
            // All at the same time: patience is for all of them together.
            for next in applying.iter().skip(short.applying + 1) {
                next.holdings.ask_for(next.places, cost, now);
            }
            asked.holdings.wait_for(asked.places, cost, deadline).await;
            continue;
        }
        asked.holdings.was_waited_for(now);
        if asked.holdings.is_alone(now) {
            by = By::Alone;
        }
        match asked.holdings.decide_alone(short.place, cost, now) {
            // A token was made for it. Another request may take it first, but not for ever.
            Verdict::TryAgain if tries < MOST_TRIES => tries += 1,
            // An answer has come just now.
            Verdict::NotAlone { .. } if tries < FEW_TRIES => tries += 1,
            Verdict::Pass => passed.push((short.applying, short.place)),
            Verdict::Refused { until } | Verdict::NotAlone { until } => {
                count(by, node);
                return refused(by, &short, until, now);
            }
            Verdict::Unknown | Verdict::TryAgain => {
                count(by, node);
                return Decision::Unavailable;
            }
        }
    }
}

/// A limit that does not admit a request.
#[derive(Debug, Clone, Copy)]
struct Short {
    applying: usize,
    place: Place,
    /// Until when there is certainly nothing: then it is a refusal. Else nothing is known yet.
    until: Option<Nanos>,
}

/// `passed` are limits that need not be asked. What is kept of what was taken is what may have to go back.
fn take_all(
    applying: &[Applying<'_>],
    passed: &[(usize, Place)],
    cost: u64,
    refundable: bool,
    now: Nanos,
) -> Result<Admitted, Short> {
    // Looks before it takes. A request that is refused anyway then takes nothing from anybody, not even for a
    // moment; and the processor fetches all leases at once, where taking from one waits for the one before.
    let mut short = None;
    for (index, of) in applying.iter().enumerate() {
        for place in of.places {
            let holds =
                of.holdings.leases().get(place.index()).is_some_and(|lease| lease.seems_to_hold(place.cost(cost), now));
            if holds || passed.contains(&(index, *place)) {
                continue;
            }
            match of.holdings.look_for(*place, cost, now) {
                Found::More => continue,
                Found::NoneUntil(until) => {
                    return Err(Short { applying: index, place: *place, until: Some(until) });
                }
                Found::Unknown => {}
            }
            short = short.or(Some(Short { applying: index, place: *place, until: None }));
        }
    }
    if let Some(short) = short {
        return Err(asked_in_vain(applying, short, cost));
    }
    let mut admitted = Admitted::default();
    // Few bytes, and they stay here: this is done for each request.
    let mut taken: SmallVec<[Taken; 8]> = SmallVec::new();
    let places = applying.iter().enumerate().flat_map(|(index, of)| of.places.iter().map(move |place| (index, *place)));
    let places = places.filter(|place| !passed.contains(place));
    for (index, place) in places.clone() {
        let of = &applying[index];
        if let Some(took) = of.holdings.take(place, cost, now) {
            taken.push(took.taken);
            if refundable || place.is_slots() {
                admitted.took.push((Arc::clone(of.holdings), took));
            }
            continue;
        }
        // Others were quicker. None has anything taken from it.
        admitted.took.clear();
        for ((index, place), taken) in places.zip(taken) {
            applying[index].holdings.put_back(Took::new(place, cost, taken));
        }
        return Err(asked_in_vain(applying, Short { applying: index, place, until: None }, cost));
    }
    Ok(admitted)
}

fn asked_in_vain(applying: &[Applying<'_>], short: Short, cost: u64) -> Short {
    applying[short.applying].holdings.asked_in_vain(short.place, cost);
    short
}

fn refused(by: By, short: &Short, until: Nanos, now: Nanos) -> Decision {
    let wait = Duration::from_nanos(until.saturating_sub(now));
    Decision::Refused { by, applying: short.applying, place: short.place, wait }
}

fn count(by: By, node: &Node) {
    Counters::count(match by {
        By::Lease => &node.counters.local,
        By::Coordinator => &node.counters.waited,
        By::Alone => &node.counters.alone,
    });
}
