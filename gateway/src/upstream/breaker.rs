//! The circuit breaker of an upstream as a whole: a bound on requests in flight, and a switch that
//! opens when too large a share of attempts fails.
//!
//! Closed → open when the share of failures in the last ten seconds reaches `error_rate`. Open →
//! half-open after `open_for`. Half-open → closed when [`TRIALS`] attempts in it have succeeded, → open
//! at the first failure. Each change begins a new epoch; an attempt counts only in the epoch that it was
//! admitted in, so that stragglers from before cannot reopen what has recovered.

use std::sync::{
    Arc,
    atomic::{
        AtomicU32, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
};

use seiketsu_config::tenant::Breaker as Settings;

use super::{
    clock::{Nanos, nanos},
    window::Window,
};

/// Attempts that must succeed in the half-open state; as many may be in flight in it at once.
pub const TRIALS: u16 = 3;

/// Why a request is not let through. Both mean 503 at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the upstream has breaker.max_concurrent requests in flight")]
    TooManyInFlight,
    #[error("the upstream's breaker is open")]
    Open,
}

/// A change of state that metrics and logs want to know about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    Opened,
    HalfOpened,
    Closed,
}

/// What a breaker looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    Closed,
    Open,
    HalfOpen,
}

/// Lock-free: the state is one word, the window a few counters.
#[derive(Debug, Default)]
pub struct Breaker {
    word: AtomicU64,
    /// When an open breaker becomes half-open. Written before the word says so.
    open_until: AtomicU64,
    in_flight: AtomicU32,
    attempts: Window,
    failures: Window,
}

/// The right to have one request in flight, given back when dropped.
#[derive(Debug)]
#[must_use = "the request counts as in flight only while its permit lives"]
pub struct Permit {
    breaker: Arc<Breaker>,
    epoch: Epoch,
}

/// Which run of a state an attempt belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(u32);

impl Breaker {
    /// Lets a request through or not.
    pub fn admit(self: &Arc<Self>, settings: &Settings, now: Nanos) -> Result<(Permit, Option<Transition>), Refused> {
        let others = self.in_flight.fetch_add(1, Relaxed);
        let admitted = if settings.max_concurrent > 0 && others >= settings.max_concurrent {
            Err(Refused::TooManyInFlight)
        } else {
            self.enter(settings, now)
        };
        match admitted {
            Ok((epoch, transition)) => Ok((Permit { breaker: Arc::clone(self), epoch }, transition)),
            Err(refused) => {
                self.in_flight.fetch_sub(1, Relaxed);
                Err(refused)
            }
        }
    }

    fn enter(&self, settings: &Settings, now: Nanos) -> Result<(Epoch, Option<Transition>), Refused> {
        let mut word = self.word.load(Acquire);
        loop {
            let state = State::unpack(word);
            let (next, transition) = match state.phase {
                Phase::Closed => return Ok((Epoch(state.epoch), None)),
                // Whoever switches the error rate off wants traffic, also while the breaker is open.
                _ if !watches_errors(settings) => return Ok((Epoch(state.epoch), None)),
                Phase::Open if now < self.open_until.load(Relaxed) => return Err(Refused::Open),
                Phase::Open => (state.next(Phase::HalfOpen { trials: 1, passed: 0 }), Some(Transition::HalfOpened)),
                Phase::HalfOpen { trials, passed } if trials + passed < TRIALS => {
                    (State { phase: Phase::HalfOpen { trials: trials + 1, passed }, ..state }, None)
                }
                Phase::HalfOpen { .. } => return Err(Refused::Open),
            };
            match self.word.compare_exchange_weak(word, next.pack(), AcqRel, Acquire) {
                Ok(_) => return Ok((Epoch(next.epoch), transition)),
                Err(current) => word = current,
            }
        }
    }

    /// Counts how one attempt ended. Attempts of an earlier epoch are ignored.
    pub fn record(&self, settings: &Settings, epoch: Epoch, failed: bool, now: Nanos) -> Option<Transition> {
        if !watches_errors(settings) {
            return None;
        }
        let mut word = self.word.load(Acquire);
        if State::unpack(word).epoch == epoch.0 && State::unpack(word).phase == Phase::Closed {
            self.attempts.add(now);
            if failed {
                self.failures.add(now);
            }
        }
        loop {
            let state = State::unpack(word);
            if state.epoch != epoch.0 {
                return None;
            }
            let (next, transition) = match state.phase {
                Phase::Closed if failed && self.fails_too_often(settings, now) => {
                    (state.next(Phase::Open), Some(Transition::Opened))
                }
                Phase::Closed | Phase::Open => return None,
                Phase::HalfOpen { .. } if failed => (state.next(Phase::Open), Some(Transition::Opened)),
                Phase::HalfOpen { passed, .. } if passed + 1 >= TRIALS => {
                    self.attempts.clear();
                    self.failures.clear();
                    (state.next(Phase::Closed), Some(Transition::Closed))
                }
                Phase::HalfOpen { trials, passed } => {
                    (State { phase: Phase::HalfOpen { trials, passed: passed + 1 }, ..state }, None)
                }
            };
            if next.phase == Phase::Open {
                self.open_until.store(now.saturating_add(nanos(settings.open_for.get())), Relaxed);
            }
            match self.word.compare_exchange_weak(word, next.pack(), AcqRel, Acquire) {
                Ok(_) => return transition,
                Err(current) => word = current,
            }
        }
    }

    fn fails_too_often(&self, settings: &Settings, now: Nanos) -> bool {
        let attempts = self.attempts.sum(now);
        attempts >= u64::from(settings.min_requests.max(1))
            && (self.failures.sum(now) * 100) as f64 >= settings.error_rate.get() * attempts as f64
    }

    /// A trial that ends frees its place for another, whatever became of it.
    fn leave(&self, epoch: Epoch) {
        self.in_flight.fetch_sub(1, Relaxed);
        let mut word = self.word.load(Acquire);
        loop {
            let state = State::unpack(word);
            let Phase::HalfOpen { trials, passed } = state.phase else { return };
            if state.epoch != epoch.0 {
                return;
            }
            let next = State { phase: Phase::HalfOpen { trials: trials.saturating_sub(1), passed }, ..state };
            match self.word.compare_exchange_weak(word, next.pack(), AcqRel, Acquire) {
                Ok(_) => return,
                Err(current) => word = current,
            }
        }
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    pub fn state(&self) -> BreakerState {
        match State::unpack(self.word.load(Acquire)).phase {
            Phase::Closed => BreakerState::Closed,
            Phase::Open => BreakerState::Open,
            Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }
}

impl Permit {
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.breaker.leave(self.epoch);
    }
}

fn watches_errors(settings: &Settings) -> bool {
    settings.error_rate.get() > 0.0
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    epoch: u32,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    Open,
    /// Trials in flight, and those that have passed.
    HalfOpen {
        trials: u16,
        passed: u16,
    },
}

/// Epoch in the upper half; below it two bits for the phase and fifteen for each of the counts, of which
/// neither exceeds [`TRIALS`].
const PHASE_SHIFT: u32 = 30;
const TRIALS_SHIFT: u32 = 15;
const COUNT_MASK: u64 = (1 << TRIALS_SHIFT) - 1;

impl State {
    fn next(self, phase: Phase) -> Self {
        Self { epoch: self.epoch.wrapping_add(1), phase }
    }

    fn pack(self) -> u64 {
        let phase = match self.phase {
            Phase::Closed => 0,
            Phase::Open => 1 << PHASE_SHIFT,
            Phase::HalfOpen { trials, passed } => {
                2 << PHASE_SHIFT | u64::from(trials) << TRIALS_SHIFT | u64::from(passed)
            }
        };
        u64::from(self.epoch) << 32 | phase
    }

    #[allow(clippy::cast_possible_truncation)] // Each part is masked to its width.
    fn unpack(word: u64) -> Self {
        let phase = match word >> PHASE_SHIFT & 0b11 {
            0 => Phase::Closed,
            1 => Phase::Open,
            _ => Phase::HalfOpen {
                trials: (word >> TRIALS_SHIFT & COUNT_MASK) as u16,
                passed: (word & COUNT_MASK) as u16,
            },
        };
        Self { epoch: (word >> 32) as u32, phase }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use seiketsu_config::values::{Percent, Span};

    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn settings(max_concurrent: u32, error_rate: u8) -> Settings {
        Settings {
            max_concurrent,
            error_rate: Percent::new_const(error_rate),
            min_requests: 4,
            open_for: Span::from_secs(5),
        }
    }

    fn attempt(breaker: &Arc<Breaker>, settings: &Settings, failed: bool, now: Nanos) {
        let (permit, _) = breaker.admit(settings, now).unwrap();
        breaker.record(settings, permit.epoch(), failed, now);
    }

    #[test]
    fn no_more_than_max_concurrent_are_in_flight() {
        let breaker = Arc::new(Breaker::default());
        let settings = settings(2, 0);
        let first = breaker.admit(&settings, 0).unwrap();
        let _second = breaker.admit(&settings, 0).unwrap();
        assert_eq!(breaker.admit(&settings, 0).unwrap_err(), Refused::TooManyInFlight);
        drop(first);
        assert!(breaker.admit(&settings, 0).is_ok());
    }

    #[test]
    fn it_opens_at_the_error_rate_but_not_below_min_requests() {
        let breaker = Arc::new(Breaker::default());
        let settings = settings(0, 50);
        for failed in [true, true, true] {
            attempt(&breaker, &settings, failed, SECOND);
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
        attempt(&breaker, &settings, true, SECOND);
        assert_eq!(breaker.admit(&settings, SECOND).unwrap_err(), Refused::Open);
    }

    #[test]
    fn failures_of_before_the_window_are_forgotten() {
        let breaker = Arc::new(Breaker::default());
        let settings = settings(0, 50);
        for _ in 0..3 {
            attempt(&breaker, &settings, true, SECOND);
        }
        attempt(&breaker, &settings, true, 20 * SECOND);
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    fn opened(settings: &Settings) -> Arc<Breaker> {
        let breaker = Arc::new(Breaker::default());
        for _ in 0..4 {
            attempt(&breaker, settings, true, SECOND);
        }
        assert_eq!(breaker.state(), BreakerState::Open);
        breaker
    }

    #[test]
    fn three_good_trials_close_it_and_one_bad_opens_it_again() {
        let settings = settings(0, 50);
        let breaker = opened(&settings);
        attempt(&breaker, &settings, false, 6 * SECOND);
        attempt(&breaker, &settings, true, 6 * SECOND);
        assert_eq!(breaker.state(), BreakerState::Open);
        for _ in 0..3 {
            attempt(&breaker, &settings, false, 11 * SECOND);
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
        attempt(&breaker, &settings, true, 11 * SECOND);
        assert_eq!(breaker.state(), BreakerState::Closed, "the failures of before must be forgotten");
    }

    #[test]
    fn trials_that_end_without_an_outcome_make_room_for_others() {
        let settings = settings(0, 50);
        let breaker = opened(&settings);
        for _ in 0..10 {
            let trials: Vec<_> = (0..3).map(|_| breaker.admit(&settings, 6 * SECOND).unwrap()).collect();
            assert_eq!(breaker.admit(&settings, 6 * SECOND).unwrap_err(), Refused::Open);
            drop(trials);
        }
    }

    #[test]
    fn a_straggler_from_before_does_not_reopen_it() {
        let settings = settings(0, 50);
        let breaker = Arc::new(Breaker::default());
        let (straggler, _) = breaker.admit(&settings, SECOND).unwrap();
        for _ in 0..4 {
            attempt(&breaker, &settings, true, SECOND);
        }
        let (_trial, transition) = breaker.admit(&settings, 6 * SECOND).unwrap();
        assert_eq!(transition, Some(Transition::HalfOpened));
        assert_eq!(breaker.record(&settings, straggler.epoch(), true, 6 * SECOND), None);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
    }

    #[test]
    fn switching_the_error_rate_off_lets_traffic_through_an_open_breaker() {
        let breaker = opened(&settings(0, 50));
        assert!(breaker.admit(&settings(0, 0), SECOND).is_ok());
    }

    /// The same rules, written the slow and obvious way.
    #[derive(Default)]
    struct Model {
        epoch: usize,
        phase: ModelPhase,
        log: Vec<(u64, bool)>,
    }

    #[derive(Default, Debug, PartialEq)]
    enum ModelPhase {
        #[default]
        Closed,
        Open {
            until: Nanos,
        },
        HalfOpen {
            running: usize,
            passed: usize,
        },
    }

    impl Model {
        fn enter_phase(&mut self, phase: ModelPhase) {
            self.epoch += 1;
            self.phase = phase;
        }

        fn admit(&mut self, now: Nanos) -> Option<usize> {
            if matches!(self.phase, ModelPhase::Open { until } if now >= until) {
                self.enter_phase(ModelPhase::HalfOpen { running: 0, passed: 0 });
            }
            match &mut self.phase {
                ModelPhase::Closed => {}
                ModelPhase::Open { .. } => return None,
                ModelPhase::HalfOpen { running, passed } => {
                    if *running + *passed >= usize::from(TRIALS) {
                        return None;
                    }
                    *running += 1;
                }
            }
            Some(self.epoch)
        }

        fn finish(&mut self, epoch: usize, failed: bool, now: Nanos) {
            if epoch != self.epoch {
                return;
            }
            let open = ModelPhase::Open { until: now + 5 * SECOND };
            match &mut self.phase {
                ModelPhase::Closed => {
                    self.log.push((now / SECOND, failed));
                    let recent: Vec<_> = self.log.iter().filter(|(second, _)| now / SECOND - second < 10).collect();
                    let bad = recent.iter().filter(|(_, failed)| *failed).count();
                    if failed && recent.len() >= 4 && bad * 2 >= recent.len() {
                        self.enter_phase(open);
                    }
                }
                ModelPhase::Open { .. } => {}
                ModelPhase::HalfOpen { passed, .. } => {
                    *passed += 1;
                    let enough = *passed >= usize::from(TRIALS);
                    if failed {
                        self.enter_phase(open);
                    } else if enough {
                        self.log.clear();
                        self.enter_phase(ModelPhase::Closed);
                    }
                }
            }
        }

        fn leave(&mut self, epoch: usize) {
            if let ModelPhase::HalfOpen { running, .. } = &mut self.phase
                && epoch == self.epoch
            {
                *running -= 1;
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Admit,
        Finish { which: usize, failed: bool },
        Abandon { which: usize },
        Wait(Nanos),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Admit),
            4 => (any::<usize>(), any::<bool>()).prop_map(|(which, failed)| Step::Finish { which, failed }),
            1 => any::<usize>().prop_map(|which| Step::Abandon { which }),
            1 => (0..6 * SECOND).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn it_behaves_like_the_model(steps in prop::collection::vec(step(), 1..150)) {
            let settings = settings(0, 50);
            let breaker = Arc::new(Breaker::default());
            let mut model = Model::default();
            let mut running = Vec::new();
            let mut now = SECOND;
            for step in steps {
                match step {
                    Step::Admit => {
                        let admitted = breaker.admit(&settings, now);
                        let expected = model.admit(now);
                        prop_assert_eq!(admitted.is_ok(), expected.is_some());
                        if let (Ok((permit, _)), Some(epoch)) = (admitted, expected) {
                            running.push((permit, epoch));
                        }
                    }
                    Step::Finish { which, failed } if !running.is_empty() => {
                        let (permit, epoch) = running.swap_remove(which % running.len());
                        breaker.record(&settings, permit.epoch(), failed, now);
                        drop(permit);
                        model.finish(epoch, failed, now);
                        model.leave(epoch);
                    }
                    Step::Abandon { which } if !running.is_empty() => {
                        let (permit, epoch) = running.swap_remove(which % running.len());
                        drop(permit);
                        model.leave(epoch);
                    }
                    Step::Wait(duration) => now += duration,
                    Step::Finish { .. } | Step::Abandon { .. } => {}
                }
                let state = match model.phase {
                    ModelPhase::Closed => BreakerState::Closed,
                    ModelPhase::Open { .. } => BreakerState::Open,
                    ModelPhase::HalfOpen { .. } => BreakerState::HalfOpen,
                };
                prop_assert_eq!(breaker.state(), state);
                prop_assert_eq!(breaker.in_flight() as usize, running.len());
            }
        }
    }
}
