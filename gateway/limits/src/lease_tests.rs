//! Of the lease, apart from it: the model checker compiles that file with atomics of its own.

use crate::lease::{LOW_BITS, Lease, TOKEN_BITS, Taken, of_mark, to_mark};

#[test]
fn marks_are_near_below_what_they_stand_for() {
    assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, 8, 50].map(|tokens| of_mark(to_mark(tokens))), [0, 1, 2, 3, 4, 4, 6, 6, 8, 48]);
    for tokens in (0..TOKEN_BITS).map(|bit| (1 << bit) + 12_345_678 % (1 << bit)) {
        let mark = to_mark(tokens);
        assert!(mark < 1 << LOW_BITS);
        assert!(of_mark(mark) <= tokens && of_mark(mark) * 3 / 2 + 1 >= tokens, "{tokens}");
    }
}

#[test]
fn renewal_is_due_when_half_is_spent() {
    let lease = Lease::new();
    lease.add(100, u64::MAX);
    let due = (0..100).position(|_| matches!(lease.take(1, 1), Some(Taken { low: true, .. })));
    assert_eq!(due, Some(52));
    lease.void();
    lease.add(1, u64::MAX);
    assert!(matches!(lease.take(1, 1), Some(Taken { low: false, .. })));
}
