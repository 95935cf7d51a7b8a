//! The way between some gateways and Redis, which can be cut.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::watch,
};

/// Forwards connections while it is open. Cut, it closes those that there are, and all new ones at once.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    open: Arc<watch::Sender<bool>>,
}

impl Proxy {
    pub fn start(to: SocketAddr, runtime: &Handle) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let open = Arc::new(watch::Sender::new(true));
        let state = open.subscribe();
        runtime.spawn(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                if *state.borrow() {
                    tokio::spawn(forward(stream, to, state.clone()));
                }
            }
        });
        Ok(Self { address, open })
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    pub fn mend(&self) {
        self.open.send_replace(true);
    }
}

async fn forward(mut from: TcpStream, to: SocketAddr, mut open: watch::Receiver<bool>) {
    let Ok(mut onward) = TcpStream::connect(to).await else { return };
    let _ = (from.set_nodelay(true), onward.set_nodelay(true));
    tokio::select! {
        _ = copy_bidirectional(&mut from, &mut onward) => {}
        _ = open.wait_for(|open| !open) => {}
    }
}
