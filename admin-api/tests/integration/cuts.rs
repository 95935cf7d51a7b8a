//! A network between the control plane and Postgres that drops what is sent and tells nobody.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use seiketsu_admin_api::store::{Author, ChangeSet, Store};

use crate::support::{self, Database, Postgres, settings, tenant_with_rate, wait_until};

/// Between a control plane and its store.
struct Network {
    address: SocketAddr,
    /// Connections that were made before the last cut carry nothing any more.
    cuts: Arc<AtomicUsize>,
}

impl Network {
    fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, cuts) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let of_network = Arc::clone(&cuts);
        thread::spawn(move || {
            for near in listener.incoming() {
                let (Ok(near), Ok(far)) = (near, TcpStream::connect(server)) else { return };
                let made = of_network.load(Ordering::SeqCst);
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let cuts = Arc::clone(&of_network);
                    thread::spawn(move || carry(from, to, || cuts.load(Ordering::SeqCst) > made));
                }
            }
        });
        Self { address, cuts }
    }

    fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::SeqCst);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, is_cut: impl Fn() -> bool) {
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        if !is_cut() && to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    // Not even that is told.
    if !is_cut() {
        let _ = to.shutdown(Shutdown::Both);
    }
}

#[test]
fn connections_that_are_cut_without_a_word_cost_moments_and_not_minutes() {
    let server = Postgres::start();
    let direct = Database::Postgres(server);
    let host = direct.url().rsplit('@').next().unwrap().split('/').next().unwrap().parse().unwrap();
    let network = Network::before(host);
    let through = direct.url().replace(&host.to_string(), &network.address.to_string());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let open = |url: String| runtime.block_on(Store::connect(&settings(url))).unwrap();
    let (store, other) = (open(through), open(direct.url()));
    let by = Author { id: None, name: "test".to_owned(), address: None, request: "r".to_owned(), action: "test" };
    let write = |rate: u64| {
        let put = vec![serde_json::from_value(tenant_with_rate("acme", rate)).unwrap()];
        let change = ChangeSet { put, ..ChangeSet::default() };
        runtime.block_on(other.write(&by, change, None)).unwrap().revision
    };
    // Many connections that are idle by then.
    runtime.block_on(async {
        let reads = (0..12).map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.whole().await })
        });
        for read in reads.collect::<Vec<_>>() {
            read.await.unwrap().unwrap();
        }
    });
    let hears_at_once = |rates: std::ops::Range<u64>| {
        rates.into_iter().all(|rate| {
            let mut newest = store.newest();
            let (begun, revision) = (Instant::now(), write(rate));
            let told = newest.wait_for(|newest| *newest >= revision);
            runtime
                .block_on(async { tokio::time::timeout(support::PATIENCE, told).await.unwrap().map(|_| ()).unwrap() });
            begun.elapsed() < Duration::from_millis(400)
        })
    };
    let mut rate = 0;
    let mut hears = || {
        rate += 10;
        hears_at_once(rate..rate + 6)
    };
    wait_until("it hears at once", &mut hears);

    network.cut();
    let begun = Instant::now();
    wait_until("the store answers", || runtime.block_on(store.ping()).is_ok());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for _ in 0..20 {
        runtime.block_on(store.head()).unwrap();
    }
    // And it is told of what others write, and does not only find it out a second later.
    wait_until("it hears at once again", &mut hears);
}
