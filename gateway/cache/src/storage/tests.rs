#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

use super::*;
use crate::{
    directives::ResponseDirectives,
    freshness::Exchange,
    key::Resource,
    purge::{Purge, Sequence},
    reuse::Rules,
    stored::{MOST_VARIANTS, PASS_SECONDS, Parts, Stored},
    time::Timestamp,
    vary::Selection,
};

const NOW: Timestamp = Timestamp::from_unix(1_000_000_000);
const KIB: usize = 1024;
const MIB: u64 = 1024 * 1024;

fn response(length: usize, selection: Selection, since: Sequence) -> Stored {
    let exchange = Exchange { requested: NOW, answered: NOW };
    Stored::new(Parts {
        status: StatusCode::OK,
        headers: http::HeaderMap::new(),
        body: Bytes::from(vec![b'x'; length]),
        rules: Rules::new(&ResponseDirectives::default(), 60, 0, exchange),
        selection,
        since,
    })
}

fn resource(key: &str) -> Resource {
    Resource::new(b"a.test", key, None)
}

fn store(partition: &Partition, key: &str, length: usize) -> bool {
    let stored = response(length, Selection::default(), partition.purges().latest());
    partition.store(key.as_bytes(), &resource(key), stored)
}

fn has(partition: &Partition, key: &str) -> bool {
    matches!(partition.find(key.as_bytes(), &http::HeaderMap::new(), NOW), Lookup::Found(_))
}

#[test]
fn what_is_stored_is_found_until_it_is_purged() {
    let storage = Storage::new(64 * MIB);
    let partition = storage.partition("a", 8 * MIB);
    assert!(!has(&partition, "/x"));
    assert!(store(&partition, "/x", 100) && has(&partition, "/x"));
    assert!(partition.bytes() > 100 && storage.stored_bytes() == partition.bytes());
    storage.purges("a").unwrap().add(&Purge::All);
    assert!(!has(&partition, "/x"));
    assert!(store(&partition, "/x", 100) && has(&partition, "/x"));
    assert!(storage.purges("b").is_none());
    // Whose tenant has gone are not kept.
    storage.purges("a").unwrap().add(&Purge::Tag("x".into()));
    drop(partition);
    assert!(storage.purges("a").is_none());
    assert!(store(&storage.partition("a", MIB), "/x", 100));
}

#[test]
fn tenants_do_not_see_each_other() {
    let storage = Storage::new(64 * MIB);
    let (one, other) = (storage.partition("a", MIB), storage.partition("b", MIB));
    store(&one, "/x", 100);
    assert!(has(&one, "/x") && !has(&other, "/x"));
    assert!(Arc::ptr_eq(&one, &storage.partition("a", MIB)));
}

#[test]
fn variants_stand_beside_each_other_and_are_bounded() {
    let storage = Storage::new(64 * MIB);
    let partition = storage.partition("a", 8 * MIB);
    let name = HeaderName::from_static("x-a");
    let request =
        |number: usize| -> http::HeaderMap { [(name.clone(), HeaderValue::from(number))].into_iter().collect() };
    for number in 0..2 * MOST_VARIANTS {
        let selection = Selection::of(std::slice::from_ref(&name), &request(number));
        partition.store(b"/", &resource("/"), response(number, selection, Sequence::default()));
    }
    for number in 0..2 * MOST_VARIANTS {
        match partition.find(b"/", &request(number), NOW) {
            Lookup::Found(stored) => assert!(stored.body.len() == number && number >= MOST_VARIANTS),
            Lookup::OtherVariants => assert!(number < MOST_VARIANTS),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_variant_that_is_used_outlives_those_that_are_not() {
    let storage = Storage::new(64 * MIB);
    let partition = storage.partition("a", 8 * MIB);
    let name = HeaderName::from_static("x-a");
    let request =
        |number: usize| -> http::HeaderMap { [(name.clone(), HeaderValue::from(number))].into_iter().collect() };
    for number in 0..10 * MOST_VARIANTS {
        let selection = Selection::of(std::slice::from_ref(&name), &request(number));
        partition.store(b"/", &resource("/"), response(number, selection, Sequence::default()));
        for used in 0..3.min(number + 1) {
            assert!(matches!(partition.find(b"/", &request(used), NOW), Lookup::Found(_)), "{used} after {number}");
        }
    }
    let found = |number: &usize| matches!(partition.find(b"/", &request(*number), NOW), Lookup::Found(_));
    assert_eq!((0..10 * MOST_VARIANTS).filter(found).count(), MOST_VARIANTS);
}

#[test]
fn a_validated_response_takes_the_place_of_the_old_one_only() {
    let storage = Storage::new(64 * MIB);
    let partition = storage.partition("a", 8 * MIB);
    store(&partition, "/", 1);
    let Lookup::Found(old) = partition.find(b"/", &http::HeaderMap::new(), NOW) else { panic!() };
    partition.renew(b"/", &resource("/"), &old, &Arc::new(response(2, Selection::default(), Sequence::default())));
    let Lookup::Found(new) = partition.find(b"/", &http::HeaderMap::new(), NOW) else { panic!() };
    assert_eq!(new.body.len(), 2);
    partition.renew(b"/", &resource("/"), &old, &Arc::new(response(3, Selection::default(), Sequence::default())));
    let Lookup::Found(same) = partition.find(b"/", &http::HeaderMap::new(), NOW) else { panic!() };
    assert!(Arc::ptr_eq(&new, &same));
    partition.forget(b"/", &resource("/"), &http::HeaderMap::new());
    assert!(!has(&partition, "/"));
}

#[test]
fn keys_may_pass_for_a_while() {
    let storage = Storage::new(64 * MIB);
    let partition = storage.partition("a", 8 * MIB);
    partition.pass(b"/", Timestamp::from_unix(1_000_000_005));
    let find = |after: u64| partition.find(b"/", &http::HeaderMap::new(), Timestamp::from_unix(1_000_000_000 + after));
    assert!(matches!(find(4), Lookup::Passes) && matches!(find(5), Lookup::Nothing));
    // A clock that is set back does not make it pass for longer than it would have.
    let passes =
        |now| matches!(partition.find(b"/", &http::HeaderMap::new(), Timestamp::from_unix(now)), Lookup::Passes);
    assert!(passes(1_000_000_005 - PASS_SECONDS) && !passes(1_000_000_004 - PASS_SECONDS));
    store(&partition, "/", 1);
    assert!(has(&partition, "/"));
}

#[test]
fn what_was_purged_does_not_hide_that_nothing_is_storable() {
    let storage = Storage::new(64 * MIB);
    let partition = storage.partition("a", 8 * MIB);
    let find = || partition.find(b"/", &http::HeaderMap::new(), NOW);
    let until = Timestamp::from_unix(NOW.unix() + 5);
    partition.pass(b"/", until);
    store(&partition, "/", 1);
    partition.purges().add(&Purge::All);
    // Not by what was noted before it was stored.
    assert!(matches!(find(), Lookup::Nothing));
    partition.pass(b"/", until);
    assert!(matches!(find(), Lookup::Passes));
    // What was not purged stays.
    store(&partition, "/", 1);
    partition.pass(b"/", until);
    assert!(has(&partition, "/"));
}

#[test]
fn who_would_wait_for_one_variant_in_vain_does_not_wait_for_the_next() {
    let storage = Storage::new(64 * MIB);
    let partition = storage.partition("a", 8 * MIB);
    let name = HeaderName::from_static("x-a");
    let request =
        |number: u64| -> http::HeaderMap { [(name.clone(), HeaderValue::from(number))].into_iter().collect() };
    partition.pass(b"/", Timestamp::from_unix(1_000_000_005));
    let selection = Selection::of(std::slice::from_ref(&name), &request(1));
    assert!(partition.store(b"/", &resource("/"), response(1, selection, Sequence::default())));
    let find = |number, after: u64| partition.find(b"/", &request(number), Timestamp::from_unix(1_000_000_000 + after));
    assert!(matches!(find(1, 0), Lookup::Found(_)));
    assert!(matches!((find(2, 0), find(2, 5)), (Lookup::Passes, Lookup::OtherVariants)));
}

#[test]
fn memory_stays_within_the_budget_under_a_scan_of_ten_times_its_size() {
    let storage = Storage::new(8 * MIB);
    // What the tenant may have is more than there is.
    let partition = storage.partition("a", 64 * MIB);
    for number in 0..10 * 8 * 64 {
        store(&partition, &format!("/{number}"), 16 * KIB);
        assert!(storage.stored_bytes() <= storage.budget(), "{}", storage.stored_bytes());
    }
    // And it is made use of.
    assert!(storage.stored_bytes() > storage.budget() * 8 / 10, "{}", storage.stored_bytes());
    assert!(partition.keys_in_order() < 4096);
}

#[test]
fn a_tenant_has_no_more_than_it_may_have() {
    let storage = Storage::new(64 * MIB);
    let partition = storage.partition("a", MIB);
    for number in 0..10 * 64 {
        store(&partition, &format!("/{number}"), 16 * KIB);
        assert!(partition.bytes() <= MIB);
    }
    assert!(partition.bytes() > MIB * 8 / 10 && partition.counts().evictions > 0);
    assert!(!store(&partition, "/large", 2 * 1024 * KIB));
}

#[test]
fn a_tenant_that_floods_evicts_nothing_of_another() {
    let storage = Storage::new(8 * MIB);
    let (quiet, flooding) = (storage.partition("quiet", 64 * MIB), storage.partition("flooding", 64 * MIB));
    for number in 0..100 {
        assert!(store(&quiet, &format!("/{number}"), 16 * KIB));
    }
    // Before and after there is pressure, and also by what is asked for again and again.
    for number in 0..10 * 8 * 64 {
        store(&flooding, &format!("/{number}"), 16 * KIB);
        has(&flooding, &format!("/{}", number / 2));
    }
    assert!((0..100).all(|number| has(&quiet, &format!("/{number}"))));
    assert!(storage.stored_bytes() <= storage.budget());
    // Who came late still gets its share.
    let late = storage.partition("late", 64 * MIB);
    for number in 0..100 {
        assert!(store(&late, &format!("/{number}"), 16 * KIB));
    }
    let kept = (0..100).filter(|number| has(&late, &format!("/{number}"))).count();
    assert_eq!(kept, 100);
    assert!((0..100).all(|number| has(&quiet, &format!("/{number}"))));
}

#[test]
fn what_is_larger_than_a_share_takes_nothing_of_those_who_have_no_more_than_theirs() {
    let storage = Storage::new(8 * MIB);
    let tenants: Vec<_> = (0..40).map(|number| storage.partition(&number.to_string(), 64 * MIB)).collect();
    let kept = || -> Vec<usize> {
        let kept = |partition: &Arc<Partition>| (0..9).filter(|number| has(partition, &format!("/{number}"))).count();
        tenants.iter().map(kept).collect()
    };
    for number in 0..9 {
        for partition in &tenants {
            assert!(store(partition, &format!("/{number}"), 15 * KIB));
        }
    }
    assert_eq!(kept(), [9; 40]);
    // Nobody has more than its share, and a share is smaller than this: what who wants it has stays as well.
    let before = storage.stored_bytes();
    assert!(!store(&tenants[0], "/large", 512 * KIB) && !store(&storage.partition("new", 64 * MIB), "/", 512 * KIB));
    assert_eq!((kept(), storage.stored_bytes()), (vec![9; 40], before));
    // What is no larger than its share it has.
    assert!(store(&tenants[0], "/large", 140 * KIB) && has(&tenants[0], "/large"));
    assert_eq!(kept()[1..], [9; 39]);
}

#[test]
fn who_needs_little_loses_little_however_much_others_have() {
    let storage = Storage::new(8 * MIB);
    let (small, large) = (storage.partition("small", 64 * MIB), storage.partition("large", 64 * MIB));
    (0..240).for_each(|number| assert!(store(&small, &format!("/{number}"), 16 * KIB)));
    (0..1000).for_each(|number| _ = store(&large, &format!("/{number}"), 16 * KIB));
    let kept = || (0..240).filter(|number| has(&small, &format!("/{number}"))).count();
    // It has more than its half by now, and gives that much when it stores more, at most.
    assert!(store(&small, "/new", KIB) && kept() > 170, "{}", kept());
}

#[test]
fn validations_with_longer_fields_stay_within_the_budget() {
    let storage = Storage::new(8 * MIB);
    let tenants = ["a", "b", "c"].map(|tenant| storage.partition(tenant, 64 * MIB));
    let exchange = Exchange { requested: NOW, answered: NOW };
    for number in 0..300 {
        let key = format!("/{number}");
        for partition in &tenants {
            assert!(store(partition, &key, 1));
            let Lookup::Found(old) = partition.find(key.as_bytes(), &http::HeaderMap::new(), NOW) else { panic!() };
            let long = HeaderValue::from_str(&"x".repeat(60_000)).unwrap();
            let headers = [(HeaderName::from_static("x-long"), long)].into_iter().collect();
            let rules = Rules::new(&ResponseDirectives::default(), 60, 0, exchange);
            let new = old.renewed(headers, rules, Selection::default(), Sequence::default());
            assert!(partition.renew(key.as_bytes(), &resource(&key), &old, &Arc::new(new)));
            assert!(storage.stored_bytes() <= storage.budget(), "{}", storage.stored_bytes());
        }
    }
    let least = tenants.iter().map(|partition| partition.bytes()).min().unwrap();
    assert!(least > storage.budget() / 4, "{least}");
}

#[test]
fn large_things_that_nobody_uses_any_more_make_way_for_small_ones() {
    let storage = Storage::new(64 * MIB);
    let partition = storage.partition("a", 8 * MIB);
    for number in 0..7 {
        let key = format!("/large/{number}");
        assert!(store(&partition, &key, KIB * KIB) && has(&partition, &key));
    }
    let mut hits = 0;
    for _ in 0..4 {
        let keys = || (0..300).map(|number| format!("/{number}"));
        hits = keys().filter(|key| has(&partition, key) || !store(&partition, key, 16 * KIB)).count();
    }
    assert_eq!(hits, 300);
}

#[test]
fn what_is_used_outlives_what_is_not() {
    let storage = Storage::new(8 * MIB);
    let partition = storage.partition("a", 64 * MIB);
    for number in 0..100 {
        store(&partition, &format!("/hot/{number}"), 16 * KIB);
    }
    for number in 0..2000 {
        store(&partition, &format!("/cold/{number}"), 16 * KIB);
        for hot in 0..100 {
            has(&partition, &format!("/hot/{hot}"));
        }
    }
    assert!((0..100).all(|number| has(&partition, &format!("/hot/{number}"))));
}

#[test]
fn another_budget_counts_once_it_is_set_and_takes_nothing_that_fits() {
    let storage = Storage::new(64 * MIB);
    let partition = storage.partition("a", 8 * MIB);
    for number in 0..100 {
        store(&partition, &format!("/{number}"), 16 * KIB);
    }
    // Whoever asks for the tenant's cache may come to nothing.
    drop(storage.partition("a", MIB));
    let kept = || (0..100).filter(|number| has(&partition, &format!("/{number}"))).count();
    assert_eq!((kept(), partition.budget()), (100, 8 * MIB));
    partition.set_budget(MIB);
    assert!((40..=64).contains(&kept()) && partition.bytes() <= MIB, "{}", kept());
    let left = kept();
    partition.set_budget(8 * MIB);
    assert!(kept() == left && store(&partition, "/new", 16 * KIB) && kept() == left);
    drop(partition);
    assert_eq!(storage.stored_bytes(), 0);
}

#[test]
fn whatever_comes_is_stored_however_often_all_else_is_asked_for() {
    let storage = Storage::new(64 * MIB);
    let partition = storage.partition("a", MIB);
    for number in 0..1000_usize {
        store(&partition, &format!("/hot/{number}"), KIB);
        for _ in 0..20 {
            for hot in number.saturating_sub(500)..number {
                has(&partition, &format!("/hot/{hot}"));
            }
        }
        if number % 100 == 0 {
            assert!(store(&partition, "/large", 100 * KIB) && has(&partition, "/large"), "{number}");
        }
    }
    assert!(partition.bytes() <= MIB);
    // What cannot be stored is not said to be.
    assert!(!store(&partition, "/larger", 1024 * KIB) && !has(&partition, "/larger"));
}

#[test]
fn variants_of_one_key_make_room_for_each_other() {
    let storage = Storage::new(64 * MIB);
    let partition = storage.partition("a", MIB);
    let name = HeaderName::from_static("x-a");
    for number in 0..20 {
        let request: http::HeaderMap = [(name.clone(), HeaderValue::from(number))].into_iter().collect();
        let selection = Selection::of(std::slice::from_ref(&name), &request);
        assert!(partition.store(b"/", &resource("/"), response(300 * KIB, selection, Sequence::default())));
        assert!(matches!(partition.find(b"/", &request, NOW), Lookup::Found(_)), "{number}");
        assert!(partition.bytes() <= MIB);
    }
    assert!(partition.bytes() > MIB * 8 / 10);
}

#[test]
fn nothing_older_comes_up_again_when_a_response_is_forgotten() {
    let storage = Storage::new(64 * MIB);
    let partition = storage.partition("a", MIB);
    let request: http::HeaderMap = [("x-a", "1")]
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .into_iter()
        .collect();
    let store = |names: &[HeaderName], of: &http::HeaderMap| {
        let stored = response(1, Selection::of(names, of), Sequence::default());
        assert!(partition.store(b"/", &resource("/"), stored));
    };
    store(&[], &request);
    store(&[HeaderName::from_static("x-a")], &request);
    store(&[HeaderName::from_static("x-a")], &http::HeaderMap::new());
    partition.forget(b"/", &resource("/"), &request);
    assert!(matches!(partition.find(b"/", &request, NOW), Lookup::OtherVariants));
    assert!(has(&partition, "/"), "of another request");
}

#[test]
fn a_body_is_as_large_as_it_may_be_and_takes_no_more_than_it_has() {
    let storage = Storage::new(8 * MIB);
    let partition = storage.partition("a", 8 * MIB);
    let fill = |most, announced| Fill::new(partition.clone(), most, announced);
    assert_eq!(fill(100, Some(101)).unwrap_err(), NotFilled::TooLarge);
    let mut long = fill(100, None).unwrap();
    assert_eq!((long.push(&[1; 60]), long.push(&[1; 41])), (Ok(()), Err(NotFilled::TooLarge)));
    drop(long);
    // Half of the part for all that are on their way: no larger one is ever stored.
    assert_eq!(storage.largest(), 512 * KIB as u64);
    assert_eq!(fill(10 << 20, Some(512 * KIB + 1)).unwrap_err(), NotFilled::TooLarge);
    let mut endless = fill(10 << 20, None).unwrap();
    let ended = std::iter::repeat_with(|| endless.push(&[1; KIB])).find_map(Result::err);
    assert_eq!((ended, endless.len()), (Some(NotFilled::TooLarge), 512 * KIB));
    drop(endless);
    // Whether it comes at once or in pieces, and whether its length is known or not.
    for (announced, pieces) in [(None, 1), (None, 7), (Some(7 * 429), 7)] {
        let mut fill = fill(10 << 20, announced).unwrap();
        for _ in 0..pieces {
            fill.push(&vec![b'x'; 7 * 429 / pieces]).unwrap();
        }
        let body = Vec::from(fill.finish());
        assert_eq!((body.len(), body.capacity()), (7 * 429, 7 * 429));
    }
    assert_eq!(storage.totals.filling.load(Relaxed) + partition.filling().load(Relaxed), 0);
}

#[test]
fn what_is_only_announced_takes_no_room() {
    let storage = Storage::new(8 * MIB);
    let fill = |tenant| Fill::new(storage.partition(tenant, 8 * MIB), 10 << 20, Some(512 * KIB)).unwrap();
    let slow: Vec<Fill> = std::iter::repeat_with(|| fill("a")).take(100).collect();
    let mut quick = fill("b");
    assert_eq!(quick.push(&vec![1; 512 * KIB]), Ok(()));
    drop(slow);
}

#[test]
fn no_tenant_takes_all_the_room_for_what_is_on_its_way() {
    let storage = Storage::new(8 * MIB);
    // As many as find room, each of this size.
    let fill = |tenant: &str, size: usize| -> Vec<Fill> {
        let partition = storage.partition(tenant, 8 * MIB);
        let next = || {
            let mut fill = Fill::new(partition.clone(), 10 << 20, Some(size)).unwrap();
            match fill.push(&vec![1; size]) {
                Ok(()) => Some(fill),
                Err(reason) => {
                    assert_eq!(reason, NotFilled::NoRoom);
                    None
                }
            }
        };
        std::iter::from_fn(next).collect()
    };
    let (one, other, third) = (fill("a", 32 * KIB), fill("b", 32 * KIB), fill("c", 32 * KIB));
    assert_eq!([one.len(), other.len(), third.len()], [16, 8, 4]);
    drop(one);
    assert!(!fill("d", 100 * KIB).is_empty());
    drop((other, third));
    assert_eq!(storage.totals.filling.load(Relaxed), 0);
    assert_eq!(fill("d", 512 * KIB).len(), 1);
}

#[test]
fn bodies_that_clients_keep_have_a_bound() {
    let storage = Storage::new(64 * MIB);
    let partition = storage.partition("a", 8 * MIB);
    let stored_and_kept = || {
        store(&partition, "/", KIB * KIB).then(|| match partition.find(b"/", &http::HeaderMap::new(), NOW) {
            Lookup::Found(stored) => stored.body.clone(),
            other => panic!("{other:?}"),
        })
    };
    let kept: Vec<Bytes> = std::iter::from_fn(stored_and_kept).collect();
    // The last is stored. Half of what the tenant may have was not enough for the others.
    assert_eq!((kept.len(), storage.lent_bytes()), (6, 5 * MIB));
    assert!(store(&storage.partition("b", 8 * MIB), "/", KIB * KIB), "what others may have");
    drop(kept);
    // What was replaced goes some moments later.
    let deadline = Instant::now() + Duration::from_secs(30);
    while !store(&partition, "/", KIB * KIB) || storage.lent_bytes() > 0 {
        assert!(Instant::now() < deadline, "{} are still lent", storage.lent_bytes());
        std::thread::yield_now();
    }
    drop(partition);
    assert_eq!(storage.lent_bytes(), 0);
}

#[test]
fn what_nobody_keeps_or_what_stays_in_the_cache_is_not_lent() {
    let storage = Storage::new(64 * MIB);
    let partition = storage.partition("a", MIB);
    for number in 0..100 {
        assert!(store(&partition, &format!("/{number}"), 64 * KIB));
        let Lookup::Found(stored) = partition.find(format!("/{number}").as_bytes(), &http::HeaderMap::new(), NOW)
        else {
            panic!()
        };
        // It has a file then.
        assert!(stored.twin(&storage).is_none() && stored.twin(&storage).is_some());
    }
    assert_eq!(storage.lent_bytes(), 0);
    let Lookup::Found(old) = partition.find(b"/99", &http::HeaderMap::new(), NOW) else { panic!() };
    let kept = old.body.clone();
    let new = old.renewed(http::HeaderMap::new(), old.rules.clone(), Selection::default(), old.since());
    partition.renew(b"/99", &resource("/99"), &old, &Arc::new(new));
    assert_eq!(storage.lent_bytes(), 0);
    drop(old);
    partition.set_budget(0);
    assert_eq!(storage.lent_bytes(), kept.len() as u64);
}

#[test]
fn a_validated_body_keeps_its_file() {
    let storage = Storage::new(64 * MIB);
    let old = response(64 * KIB, Selection::default(), Sequence::default());
    assert!(old.twin(&storage).is_none());
    let twin = old.twin(&storage).unwrap();
    let new = old.renewed(http::HeaderMap::new(), old.rules.clone(), Selection::default(), old.since());
    drop(old);
    assert!(Arc::ptr_eq(&new.twin(&storage).unwrap(), &twin));
    assert_eq!(storage.twin_bytes(), 64 * KIB as u64);
}

#[test]
fn what_several_store_and_evict_at_the_same_time_is_counted_once() {
    let storage = Storage::new(8 * MIB);
    let partition = storage.partition("a", MIB);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let partition = &partition;
            scope.spawn(move || {
                for number in 0..2000 {
                    // Many of the same keys, of which the others replace and evict some meanwhile.
                    let key = format!("/{}", (number * 7 + thread) % 100);
                    assert!(store(partition, &key, 16 * KIB));
                    let Lookup::Found(stored) = partition.find(key.as_bytes(), &http::HeaderMap::new(), NOW) else {
                        continue;
                    };
                    match number % 3 {
                        0 => partition.forget(key.as_bytes(), &resource(&key), &http::HeaderMap::new()),
                        1 => {
                            let new = response(KIB, Selection::default(), Sequence::default());
                            partition.renew(key.as_bytes(), &resource(&key), &stored, &Arc::new(new));
                        }
                        _ => {}
                    }
                }
            });
        }
    });
    assert!(partition.bytes() <= MIB && storage.stored_bytes() == partition.bytes(), "{}", partition.bytes());
    assert_eq!(partition.keys_in_order() as u64, partition.counts().keys);
    // All of it can be evicted, and then nothing is left that somebody would count.
    partition.set_budget(0);
    assert_eq!((partition.bytes(), partition.counts().keys, partition.keys_in_order()), (0, 0, 0));
    drop(partition);
    assert_eq!((storage.stored_bytes(), storage.lent_bytes()), (0, 0));
}

#[test]
fn notes_of_what_is_not_storable_take_nothing_from_what_is() {
    let storage = Storage::new(8 * MIB);
    let partition = storage.partition("a", MIB);
    let mut stored = 0;
    while partition.counts().evictions == 0 {
        store(&partition, &format!("/{stored}"), 16 * KIB);
        stored += 1;
    }
    let (before, until) = (partition.counts(), Timestamp::from_unix(1_000_000_005));
    for number in 0..100_000 {
        partition.pass(format!("/search/{number}").as_bytes(), until);
    }
    assert_eq!(partition.counts(), before);
    let find = |number: usize| partition.find(format!("/search/{number}").as_bytes(), &http::HeaderMap::new(), NOW);
    // The last are remembered.
    assert!(matches!(find(99_999), Lookup::Passes) && matches!(find(100_000), Lookup::Nothing));
}

#[test]
fn a_scan_of_what_is_new_leaves_what_was_used_where_it_is() {
    let storage = Storage::new(64 * MIB);
    let partition = storage.partition("a", MIB);
    for number in 0..30 {
        store(&partition, &format!("/hot/{number}"), 16 * KIB);
        has(&partition, &format!("/hot/{number}"));
    }
    for number in 0..1000 {
        assert!(store(&partition, &format!("/cold/{number}"), 16 * KIB));
    }
    assert_eq!((0..30).filter(|number| has(&partition, &format!("/hot/{number}"))).count(), 30);
    assert!(has(&partition, "/cold/999") && partition.bytes() > MIB * 8 / 10);
}

#[test]
fn however_much_is_lent_of_one_tenant_another_has_its_share() {
    let storage = Storage::new(64 * MIB);
    let keep = |tenant: &str, size: usize| {
        let partition = storage.partition(tenant, 64 * MIB);
        store(&partition, "/", size).then(|| {
            let Lookup::Found(stored) = partition.find(b"/", &http::HeaderMap::new(), NOW) else { panic!() };
            (stored.body.clone(), partition)
        })
    };
    let kept: Vec<_> = std::iter::from_fn(|| keep("a", KIB * KIB)).collect();
    // What is evicted for others counts as well, and has no bound.
    kept.last().unwrap().1.set_budget(0);
    let of_other = std::iter::from_fn(|| keep("b", 100 * KIB)).take(20).collect::<Vec<_>>();
    assert_eq!(of_other.len(), 20);
}
