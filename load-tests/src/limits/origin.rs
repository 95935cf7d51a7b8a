//! The upstream: answers at once, and notes when each request came to it. What comes here was admitted.

use std::{net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Handle,
};

use super::{Micros, wall};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok";

#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    came: Arc<Mutex<Vec<(u64, Micros)>>>,
}

impl Origin {
    pub fn start(runtime: &Handle) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let came = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&came);
        runtime.spawn(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&notes)));
            }
        });
        Ok(Self { address, came })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The numbers of the requests that came since this was last asked, and when.
    pub fn take(&self) -> Vec<(u64, Micros)> {
        std::mem::take(&mut self.came.lock())
    }
}

async fn serve(mut stream: TcpStream, came: Arc<Mutex<Vec<(u64, Micros)>>>) {
    let _ = stream.set_nodelay(true);
    let mut read = Vec::with_capacity(4096);
    loop {
        match stream.read_buf(&mut read).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        // Requests have no bodies, and gateways do not pipeline them.
        if !read.ends_with(b"\r\n\r\n") {
            continue;
        }
        if let Some(number) = number(&read) {
            came.lock().push((number, wall()));
        }
        read.clear();
        if stream.write_all(ANSWER).await.is_err() {
            return;
        }
    }
}

/// Of `GET /r/{number} …`.
fn number(head: &[u8]) -> Option<u64> {
    let path = head.split(|byte| *byte == b' ').nth(1)?;
    super::events::number_of(std::str::from_utf8(path).ok()?)
}
