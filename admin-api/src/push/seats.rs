//! One connection for each node: the newest one.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use seiketsu_config::{push::Hello, values::Id};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

/// How long a process is remembered that lost its place to another one: if it asks for it again, both run.
const REMEMBERED: Duration = Duration::from_mins(10);

/// Which connection is the node's.
#[derive(Default)]
pub(super) struct Seats {
    table: Mutex<Table>,
    connections: watch::Sender<usize>,
}

#[derive(Default)]
struct Table {
    seats: HashMap<Id, Seat>,
    former: HashMap<Id, Former>,
    next: u64,
}

struct Seat {
    number: u64,
    run: Uuid,
    /// Dropped, it ends the connection.
    _ends: oneshot::Sender<()>,
}

/// A process that lost its place.
struct Former {
    run: Uuid,
    at: Instant,
}

/// The place of a connection, given back when this is dropped.
pub(super) struct Taken<'a> {
    seats: &'a Seats,
    node: Id,
    number: u64,
    run: Uuid,
    /// Resolves when another connection takes the place.
    pub(super) lost: oneshot::Receiver<()>,
}

/// Who had the place before.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Nobody, or the same process by an older connection.
    Nobody,
    /// Another process, which has most likely ended.
    Other(Uuid),
    /// Another process, which had taken it from this one: both run.
    Twin(Uuid),
}

impl Seats {
    /// Counts a connection until the value is dropped.
    pub(super) fn enter(&self) -> Connection<'_> {
        self.connections.send_modify(|connections| *connections += 1);
        Connection(self)
    }

    pub(super) fn take(&self, hello: &Hello) -> (Taken<'_>, Before) {
        let (ends, lost) = oneshot::channel();
        let (node, run) = (&hello.node, hello.run);
        let mut table = self.table.lock();
        let number = table.next;
        table.next += 1;
        let before = table.seats.insert(node.clone(), Seat { number, run, _ends: ends });
        let before = match before {
            Some(seat) if seat.run != run => table.displaced(node, seat.run, run),
            _ => Before::Nobody,
        };
        drop(table);
        (Taken { seats: self, node: node.clone(), number, run, lost }, before)
    }

    pub(super) async fn all_left(&self) {
        // The sender lives as long as this.
        let _ = self.connections.subscribe().wait_for(|connections| *connections == 0).await;
    }
}

impl Table {
    fn displaced(&mut self, node: &Id, loser: Uuid, winner: Uuid) -> Before {
        let now = Instant::now();
        self.former.retain(|_, former| now - former.at < REMEMBERED);
        let is_back = self.former.get(node).is_some_and(|former| former.run == winner);
        self.former.insert(node.clone(), Former { run: loser, at: now });
        if is_back { Before::Twin(loser) } else { Before::Other(loser) }
    }
}

impl Taken<'_> {
    /// Whether the same process has another connection now.
    pub(super) fn is_replaced_by_itself(&self) -> bool {
        let table = self.seats.table.lock();
        table.seats.get(&self.node).is_some_and(|seat| seat.number != self.number && seat.run == self.run)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut table = self.seats.table.lock();
        if table.seats.get(&self.node).is_some_and(|seat| seat.number == self.number) {
            table.seats.remove(&self.node);
        }
    }
}

pub(super) struct Connection<'a>(&'a Seats);

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.0.connections.send_modify(|connections| *connections -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(run: u128) -> Hello {
        Hello {
            node: "n1".parse().unwrap(),
            run: Uuid::from_u128(run),
            version: "0.1.0".to_owned(),
            region: None,
            zone: None,
            schemas: vec![1],
            holds: None,
            orders: false,
            usage: false,
        }
    }

    #[test]
    fn the_newest_connection_has_the_place_and_two_processes_that_both_live_are_noticed() {
        let seats = Seats::default();
        let (mut first, before) = seats.take(&hello(1));
        assert_eq!(before, Before::Nobody);
        let (mut again, before) = seats.take(&hello(1));
        assert_eq!(before, Before::Nobody);
        assert!(first.lost.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        assert!(first.is_replaced_by_itself());
        // Its end takes nothing from the one that has the place.
        drop(first);
        assert!(again.lost.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));

        let (_second, before) = seats.take(&hello(2));
        assert_eq!(before, Before::Other(Uuid::from_u128(1)));
        assert!(!again.is_replaced_by_itself());
        let (_back, before) = seats.take(&hello(1));
        assert_eq!(before, Before::Twin(Uuid::from_u128(2)));
    }
}
