//! The lease under every interleaving of a few threads, with the source of the crate and loom's atomics.

#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

#[path = "../src/lease.rs"]
mod lease;

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
}

use lease::Lease;
use loom::{sync::Arc, thread};

const ALWAYS: u64 = u64::MAX;

fn takes(lease: &Lease, now: u64) -> u64 {
    u64::from(lease.take(1, now).is_some())
}

#[test]
fn no_token_is_taken_twice() {
    loom::model(|| {
        let lease = Arc::new(Lease::new());
        lease.add(1, ALWAYS);
        let other = thread::spawn({
            let lease = Arc::clone(&lease);
            move || takes(&lease, 1)
        });
        let taken = takes(&lease, 1);
        assert_eq!(taken + other.join().unwrap() + lease.tokens(), 1);
    });
}

#[test]
fn tokens_that_come_meanwhile_are_neither_lost_nor_doubled() {
    loom::model(|| {
        let lease = Arc::new(Lease::new());
        lease.add(1, ALWAYS);
        let renewal = thread::spawn({
            let lease = Arc::clone(&lease);
            move || lease.add(1, ALWAYS)
        });
        let taken = takes(&lease, 1) + takes(&lease, 1);
        renewal.join().unwrap();
        assert_eq!(taken + lease.tokens(), 2);
    });
}

/// What is reported: granted less what is at hand is spent.
#[test]
fn what_is_voided_and_what_is_taken_are_everything() {
    loom::model(|| {
        let lease = Arc::new(Lease::new());
        lease.add(2, ALWAYS);
        let taker = thread::spawn({
            let lease = Arc::clone(&lease);
            move || takes(&lease, 1)
        });
        let voided = lease.void();
        let taken = taker.join().unwrap();
        assert_eq!(voided + taken + lease.tokens(), 2);
    });
}

#[test]
fn a_token_that_is_put_back_after_its_lease_was_voided_is_not_spent_again() {
    loom::model(|| {
        let lease = Arc::new(Lease::new());
        lease.add(1, ALWAYS);
        let taken = lease.take(1, 1).unwrap();
        let voider = thread::spawn({
            let lease = Arc::clone(&lease);
            move || lease.void()
        });
        lease.put_back(taken, 1);
        let voided = voider.join().unwrap();
        // It was put back in time, and voided with the others; or it is gone.
        assert_eq!(lease.tokens(), 0);
        assert!(voided <= 1);
    });
}

#[test]
fn nothing_is_taken_of_a_lease_that_has_ended() {
    loom::model(|| {
        let lease = Arc::new(Lease::new());
        lease.add(1, 10);
        // The lease has ended at 10; another one begins meanwhile.
        let renewal = thread::spawn({
            let lease = Arc::clone(&lease);
            move || {
                let voided = lease.void();
                lease.add(1, 30);
                voided
            }
        });
        let taken = takes(&lease, 20);
        let voided = renewal.join().unwrap();
        assert_eq!(voided, 1, "the first one was not to be taken at 20");
        assert_eq!(taken + lease.tokens(), 1);
    });
}
