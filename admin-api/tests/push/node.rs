//! A node that speaks `seiketsu_config::push`, and holds documents as a gateway does.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use seiketsu_config::{
    push::{self, Applied, Frame, FromNode, Heartbeat, Held, Hello, Refused, Sum, ToNode, Update, Welcome},
    values::Id,
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};
use uuid::Uuid;

use crate::admin::{Admin, PATIENCE};

pub fn hello(node: &str) -> Hello {
    Hello {
        node: node.parse().unwrap(),
        run: Uuid::now_v7(),
        version: "0.1.0".to_owned(),
        region: Some("eu-west".parse().unwrap()),
        zone: None,
        schemas: push::SCHEMAS.to_vec(),
        holds: None,
        orders: false,
        usage: true,
    }
}

/// What a node holds.
#[derive(Debug, Clone, Default)]
pub struct Holdings {
    pub held: Option<Held>,
    pub documents: BTreeMap<Option<Id>, String>,
}

impl Holdings {
    pub fn revision(&self) -> u64 {
        self.held.map_or(0, |held| held.revision)
    }

    pub fn tenant(&self, id: &str) -> Option<Value> {
        self.documents.get(&Some(id.parse().unwrap())).map(|text| serde_json::from_str(text).unwrap())
    }

    pub fn requests_per_minute(&self, id: &str) -> Option<u64> {
        self.tenant(id)?["policies"]["limits"]["rate"]["requests"].as_u64()
    }

    /// Takes all parts of an update, and checks that they lead to what they say.
    pub fn take(&mut self, parts: Vec<Update>) {
        assert!(self.take_if_it_fits(parts), "the sum is of what the node holds");
    }

    /// Whether they did. As a gateway, which then is lost.
    pub fn take_if_it_fits(&mut self, parts: Vec<Update>) -> bool {
        for (index, part) in parts.iter().enumerate() {
            assert_eq!(part.more, index + 1 < parts.len());
            assert_eq!((part.nonce, part.to), (parts[0].nonce, parts[0].to));
        }
        match parts[0].after {
            None => self.documents.clear(),
            Some(after) => assert_eq!(Some(after), self.held.map(|held| held.revision)),
        }
        self.held = Some(parts[0].to);
        for part in parts {
            for document in part.head.into_iter().chain(part.put) {
                assert!(document.revision <= part.to.revision);
                self.documents.insert(document.tenant, document.content.get().to_owned());
            }
            for gone in part.gone {
                self.documents.remove(&Some(gone));
            }
        }
        let sum = self
            .documents
            .iter()
            .fold(Sum::default(), |sum, (tenant, content)| sum.with(Sum::of(tenant.as_ref(), content)));
        self.held.is_some_and(|held| held.sum == sum)
    }
}

/// A connection, message by message.
pub struct Connection<S = MaybeTlsStream<TcpStream>> {
    pub socket: WebSocketStream<S>,
}

impl Connection {
    /// The status, if it is refused.
    pub async fn open(admin: &Admin, token: Option<&str>) -> Result<Self, u16> {
        let mut request = format!("ws://{}{}", admin.address, push::SUBSCRIBE_PATH).into_client_request().unwrap();
        if let Some(token) = token {
            request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        match connect_async(request).await {
            Ok((socket, _)) => Ok(Self { socket }),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    /// The system takes next to nothing for it that it does not read.
    pub async fn open_with_little_room(admin: &Admin) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = MaybeTlsStream::Plain(socket.connect(admin.address).await.unwrap());
        let mut request = format!("ws://{}{}", admin.address, push::SUBSCRIBE_PATH).into_client_request().unwrap();
        request.headers_mut().insert("authorization", format!("Bearer {}", admin.node_token).parse().unwrap());
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        Self { socket }
    }

    /// Says hello and is welcome.
    pub async fn greet(admin: &Admin, hello: &Hello) -> (Self, Welcome) {
        Self::greet_with(admin, &admin.node_token, hello).await
    }

    pub async fn greet_with(admin: &Admin, token: &str, hello: &Hello) -> (Self, Welcome) {
        let mut connection = Self::open(admin, Some(token)).await.unwrap();
        connection.say(FromNode::Hello(hello.clone())).await;
        match connection.next().await {
            Ok(ToNode::Welcome(welcome)) => (connection, welcome),
            other => panic!("{other:?}"),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub async fn say(&mut self, message: FromNode) {
        let frame = match push::write(&message).unwrap() {
            Frame::Text(text) => Message::text(text),
            Frame::Binary(bytes) => Message::binary(bytes),
        };
        // It may have ended: then the next answer tells.
        let _ = self.socket.send(frame).await;
    }

    pub async fn say_raw(&mut self, text: &str) {
        self.socket.send(Message::text(text.to_owned())).await.unwrap();
    }

    /// The next message, or how the connection ended.
    pub async fn next(&mut self) -> Result<ToNode, Option<CloseFrame>> {
        loop {
            let message = timeout(PATIENCE, self.socket.next()).await.expect("a message in time");
            return match message {
                Some(Ok(Message::Text(text))) => Ok(push::read_text(text.as_str()).unwrap()),
                Some(Ok(Message::Binary(bytes))) => Ok(push::read_binary(&bytes).unwrap()),
                Some(Ok(Message::Close(frame))) => Err(frame),
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => Err(None),
            };
        }
    }

    /// All parts of the next update.
    pub async fn update(&mut self) -> Vec<Update> {
        let mut parts = Vec::new();
        loop {
            match self.next().await {
                Ok(ToNode::Update(part)) => parts.push(*part),
                other => panic!("{other:?}"),
            }
            if parts.last().is_some_and(|part| !part.more) {
                return parts;
            }
        }
    }

    /// Takes the next update, and says so.
    pub async fn apply(&mut self, holdings: &mut Holdings) -> Vec<Update> {
        let parts = self.update().await;
        let told = parts.iter().map(copy).collect();
        let nonce = parts[0].nonce;
        holdings.take(parts);
        self.say(FromNode::Applied(applied(nonce, holdings.revision()))).await;
        told
    }

    /// Why the connection ended: code and reason. Updates that are under way are passed over.
    pub async fn end(&mut self) -> (CloseCode, String) {
        loop {
            match self.next().await {
                Ok(_) => {}
                Err(Some(frame)) => return (frame.code, frame.reason.as_str().to_owned()),
                Err(None) => panic!("the connection ended without a reason"),
            }
        }
    }
}

pub fn applied(nonce: u64, revision: u64) -> Applied {
    Applied { nonce, revision, refused: Vec::new(), refused_more: 0, lost: false }
}

fn copy(update: &Update) -> Update {
    let frame = serde_json::to_string(update).unwrap();
    serde_json::from_str(&frame).unwrap()
}

/// How a node behaves that runs by itself.
#[derive(Debug, Clone, Default)]
pub struct Manner {
    /// It refuses this tenant, for this reason.
    pub refuses: Option<(String, String)>,
    /// It answers no update.
    pub is_deaf: bool,
    /// It says goodbye and ends.
    pub leaves: bool,
}

/// A node that runs until it is dropped: it applies what it is sent, and says that it is there.
pub struct Running {
    pub holdings: watch::Receiver<Holdings>,
    pub manner: Arc<Mutex<Manner>>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    pub async fn start(admin: &Admin, name: &str) -> Self {
        Self::start_with(admin, &hello(name), Manner::default()).await
    }

    pub async fn start_with(admin: &Admin, hello: &Hello, manner: Manner) -> Self {
        let (connection, _) = Connection::greet(admin, hello).await;
        let (sender, holdings) = watch::channel(Holdings::default());
        let manner = Arc::new(Mutex::new(manner));
        let task = tokio::spawn(live(connection, sender, Arc::clone(&manner)));
        let mut running = Self { holdings, manner, task };
        running.comes_to_hold(|holdings| holdings.held.is_some()).await;
        running
    }

    /// Says goodbye and ends.
    pub async fn leave(mut self) {
        self.manner.lock().unwrap().leaves = true;
        timeout(PATIENCE, &mut self.task).await.expect("in time").unwrap();
    }

    pub async fn comes_to(&mut self, revision: u64) -> Holdings {
        self.comes_to_hold(|holdings| holdings.revision() >= revision).await
    }

    pub async fn comes_to_hold(&mut self, wanted: impl FnMut(&Holdings) -> bool) -> Holdings {
        timeout(PATIENCE, self.holdings.wait_for(wanted)).await.expect("in time").expect("a node that runs").clone()
    }
}

async fn live(mut connection: Connection, sender: watch::Sender<Holdings>, manner: Arc<Mutex<Manner>>) {
    let mut heartbeat = tokio::time::interval(Duration::from_secs(push::HEARTBEAT_SECONDS));
    let mut parts = Vec::new();
    loop {
        let message = tokio::select! {
            _ = heartbeat.tick() => {
                let revision = sender.borrow().revision();
                let draining = manner.lock().unwrap().leaves;
                connection.say(FromNode::Heartbeat(Heartbeat { revision, ready: true, draining })).await;
                if draining {
                    return;
                }
                continue;
            }
            message = connection.socket.next() => message,
        };
        let update = match message {
            Some(Ok(Message::Text(text))) => push::read_text(text.as_str()).unwrap(),
            Some(Ok(Message::Binary(bytes))) => push::read_binary(&bytes).unwrap(),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
            Some(Ok(Message::Close(_)) | Err(_)) | None => return,
        };
        let ToNode::Update(part) = update else { panic!("{update:?}") };
        let more = part.more;
        parts.push(*part);
        if more {
            continue;
        }
        let manner = manner.lock().unwrap().clone();
        let update = std::mem::take(&mut parts);
        if manner.is_deaf {
            continue;
        }
        let nonce = update[0].nonce;
        sender.send_modify(|holdings| holdings.take(update));
        let refused = manner
            .refuses
            .map(|(tenant, error)| Refused { tenant: Some(tenant.parse().unwrap()), errors: vec![error] });
        let revision = sender.borrow().revision();
        connection
            .say(FromNode::Applied(Applied {
                nonce,
                revision,
                refused: refused.into_iter().collect(),
                refused_more: 0,
                lost: false,
            }))
            .await;
    }
}
