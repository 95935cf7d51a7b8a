//! What happens to nodes, told over WebSocket and to a terminal.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest, protocol::frame::coding::CloseCode},
};

use crate::{
    admin::{Admin, PATIENCE, Process, eventually, tenant},
    node::{Manner, Running, hello},
};

struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    async fn open(admin: &Admin, query: &str, token: &str) -> Result<Self, u16> {
        let address = format!("ws://{}/api/enterprise/events/ws{query}", admin.address);
        let mut request = address.into_client_request().unwrap();
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        match connect_async(request).await {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    /// The next event, or the code that it was closed with.
    async fn next(&mut self) -> Result<Value, Option<CloseCode>> {
        loop {
            match timeout(PATIENCE, self.0.next()).await.expect("in time") {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(text.as_str()).unwrap()),
                Some(Ok(Message::Close(frame))) => return Err(frame.map(|frame| frame.code)),
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn next_of(&mut self, kind: &str) -> Value {
        loop {
            let event = self.next().await.unwrap();
            if event["kind"] == kind {
                return event;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_hears_what_nodes_do() {
    let admin = Admin::start().await;
    let newest = admin.put(&tenant("acme", 1), "").await.revision();
    let mut socket = Socket::open(&admin, "?after=0", &admin.token).await.unwrap();
    assert_eq!(socket.next().await.unwrap()["detail"]["revision"], newest);
    let refuses = Some(("acme".to_owned(), "no such file".to_owned()));
    let node = Running::start_with(&admin, &hello("n1"), Manner { refuses, ..Manner::default() }).await;
    let connected = socket.next().await.unwrap();
    assert_eq!((&connected["kind"], &connected["detail"]["node"]), (&json!("node.connected"), &json!("n1")));
    let applied = socket.next().await.unwrap();
    assert_eq!((&applied["kind"], &applied["detail"]["revision"]), (&json!("node.applied"), &json!(newest)));
    let refused = socket.next().await.unwrap();
    assert_eq!((&refused["kind"], &refused["tenants"]), (&json!("node.refused"), &json!(["acme"])));
    assert_eq!(refused["detail"]["errors"], json!(["no such file"]));
    drop(node);
    let left = socket.next().await.unwrap();
    assert_eq!((&left["kind"], &left["detail"]["node"]), (&json!("node.left"), &json!("n1")));
    // From there on, and no further.
    let after = left["number"].as_u64().unwrap() - 1;
    let mut again = Socket::open(&admin, &format!("?after={after}&follow=false"), &admin.token).await.unwrap();
    assert_eq!(again.next().await.unwrap(), left);
    assert_eq!(again.next().await, Err(Some(CloseCode::Normal)));
    assert!(matches!(Socket::open(&admin, "", "sa_nonsense").await, Err(401)));
    // What is said to it is passed over.
    socket.0.send(Message::text("hello")).await.unwrap();
    admin.put(&tenant("acme", 2), "").await.revision();
    socket.next_of("revision").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_ends_its_sockets() {
    let admin = Admin::start().await;
    let owner = admin.get("/operators").await["items"][0]["id"].clone();
    let token = json!({ "kind": "operator", "name": "x", "operator": owner });
    let token = admin.ask("POST", "/tokens", Some(token)).await.json();
    let mut socket = Socket::open(&admin, "", token["token"].as_str().unwrap()).await.unwrap();
    let path = format!("/tokens/{}", token["id"].as_str().unwrap());
    assert_eq!(admin.ask("DELETE", &path, None).await.status, 204);
    assert_eq!(socket.next().await, Err(Some(CloseCode::Policy)));
}

struct Tail {
    process: Process,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Tail {
    /// Follows, when it is there.
    fn start(admin: &Admin, arguments: &[&str]) -> Self {
        let mut command = admin.ctl_command(&[&["tail"], arguments].concat());
        let mut child: Child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { process: Process(child), lines }
    }

    fn next(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_goes_on_where_it_was_when_the_control_plane_starts_again() {
    let mut admin = Admin::start().await;
    for rate in 1..3 {
        admin.put(&tenant("acme", rate), "").await.revision();
    }
    let mut tail = Tail::start(&admin, &["--after", "0", "--kind", "revision", "--output", "json"]);
    let revision = |line: String| serde_json::from_str::<Value>(&line).unwrap()["detail"]["revision"].clone();
    assert_eq!((revision(tail.next()), revision(tail.next())), (json!(1), json!(2)));
    let text = Tail::start(&admin, &["--after", "0", "--tenant", "acme"]);
    let line = text.next();
    assert!(line.contains("revision") && line.contains("acme") && line.contains("revision=1"), "{line}");
    for rate in 3..5 {
        admin.restart().await;
        admin.put(&tenant("acme", rate), "").await.revision();
        assert_eq!(revision(tail.next()), json!(rate));
    }
    assert!(tail.process.0.try_wait().unwrap().is_none());
    // But nothing is waited for that never was there.
    drop(tail);
    admin.process.0.kill().unwrap();
    assert!(eventually(async || !admin.ctl(&["tail"]).status.success()).await);
}
