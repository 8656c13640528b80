//! A node of a released `iroh` crate, told what to do by JSON lines.
//!
//! Each line of stdin is `{"id": 1, "command": "echo", ...}`; it is answered on stdout by
//! `{"id": 1, "result": {...}}` or `{"id": 1, "error": "..."}`, in any order. Lines with `event`
//! report what happened by itself. The process ends when stdin does, so that it never outlives the
//! test that started it.

mod release;

use std::collections::HashMap;
use std::io::Write;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use release::iroh::endpoint::{Connection, RecvStream, SendStream, VarInt};
use release::iroh::{Endpoint, PublicKey, RelayMap, RelayMode, RelayUrl, SecretKey};
use serde_json::{json, Value};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::OnceCell;

/// Bytes handed to a stream at once.
const CHUNK_SIZE: usize = 1 << 16;

/// How long to take leave of other nodes before the process ends.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Node {
    endpoint: OnceCell<Endpoint>,
    connections: Mutex<HashMap<u64, Connection>>,
}

impl Node {
    async fn answer(self: Arc<Self>, request: Value) {
        let id = request["id"].clone();
        let line = match self.run(&request).await {
            Ok(result) => json!({"id": id, "result": result}),
            Err(error) => json!({"id": id, "error": format!("{error:#}")}),
        };
        write_line(&line);
    }

    async fn run(&self, request: &Value) -> Result<Value> {
        match text(request, "command")? {
            "start" => self.start(request).await,
            "online" => {
                let url = release::home_relay(self.endpoint()?).await?;
                Ok(json!({"relay_url": url.to_string()}))
            }
            "path" => {
                let kind = release::path_kind(self.endpoint()?, public_key(request)?)?;
                Ok(json!({"kind": kind}))
            }
            "dial" => self.dial(request).await,
            "echo" => {
                let size = request["size"].as_u64().context("no size")?;
                echo_out(&self.connection(request)?, size).await
            }
            "hang_up" => {
                let code = request["code"].as_u64().context("no code")?;
                let reason = text(request, "reason")?.as_bytes();
                self.connection(request)?
                    .close(VarInt::from_u64(code)?, reason);
                Ok(json!({}))
            }
            "wait_closed" => {
                let reason = self.connection(request)?.closed().await;
                Ok(json!({"reason": reason.to_string()}))
            }
            other => bail!("no command {other:?}"),
        }
    }

    /// Bind, to loopback unless told otherwise, and serve `alpns` with an echo.
    async fn start(&self, request: &Value) -> Result<Value> {
        let relays: Vec<RelayUrl> = parsed(&request["relay_urls"])?;
        let relay_mode = match relays.is_empty() {
            true => RelayMode::Disabled,
            false => RelayMode::Custom(RelayMap::from_iter(relays)),
        };
        let bind_addr = request["bind_addr"].as_str().unwrap_or("127.0.0.1:0");
        let alpns: Vec<String> = parsed(&request["alpns"])?;
        let mut builder = release::builder(relay_mode)
            .bind_addr_v4(bind_addr.parse::<SocketAddrV4>()?)
            .bind_addr_v6("[::1]:0".parse::<SocketAddrV6>()?)
            .alpns(alpns.into_iter().map(String::into_bytes).collect());
        if let Some(key) = request["secret_key"].as_str() {
            builder = builder.secret_key(key.parse::<SecretKey>()?);
        }
        let endpoint = self.endpoint.get_or_try_init(|| builder.bind()).await?;
        tokio::spawn(accept(endpoint.clone()));
        let addresses: Vec<String> = endpoint
            .bound_sockets()
            .iter()
            .map(ToString::to_string)
            .collect();
        Ok(json!({"node_id": hex(&release::id_of(endpoint)), "addresses": addresses}))
    }

    /// Connect and keep the connection under a number.
    async fn dial(&self, request: &Value) -> Result<Value> {
        let relay_url = request["relay_url"].as_str().map(str::parse).transpose()?;
        let addresses: Vec<SocketAddr> = parsed(&request["addresses"])?;
        let alpn = text(request, "alpn")?.as_bytes();
        let id = public_key(request)?;
        let connection = release::connect(self.endpoint()?, id, relay_url, addresses, alpn).await?;
        let remote_id = hex(&release::remote_id(&connection)?);
        let mut connections = self.connections.lock().unwrap();
        let number = connections.len() as u64;
        connections.insert(number, connection);
        Ok(json!({"connection": number, "remote_id": remote_id}))
    }

    fn endpoint(&self) -> Result<&Endpoint> {
        self.endpoint.get().context("not started")
    }

    fn connection(&self, request: &Value) -> Result<Connection> {
        let number = request["connection"].as_u64().context("no connection")?;
        let connections = self.connections.lock().unwrap();
        connections
            .get(&number)
            .cloned()
            .context("no such connection")
    }
}

async fn accept(endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            match incoming.await {
                Ok(connection) => serve(connection).await,
                Err(error) => write_line(&json!({"event": "refused", "error": error.to_string()})),
            }
        });
    }
}

/// Send back every bidirectional stream until the connection ends.
async fn serve(connection: Connection) {
    let alpn = String::from_utf8_lossy(&release::alpn(&connection)).into_owned();
    let remote_id = release::remote_id(&connection)
        .map(|id| hex(&id))
        .unwrap_or_default();
    write_line(&json!({"event": "accepted", "alpn": alpn, "remote_id": remote_id}));
    while let Ok((send, receive)) = connection.accept_bi().await {
        tokio::spawn(echo_back(send, receive));
    }
    let reason = connection.closed().await.to_string();
    write_line(&json!({"event": "closed", "reason": reason}));
}

async fn echo_back(mut send: SendStream, mut receive: RecvStream) -> Result<()> {
    while let Some(chunk) = receive.read_chunk(CHUNK_SIZE, true).await? {
        send.write_chunk(chunk.bytes).await?;
    }
    send.finish()?;
    Ok(())
}

/// Send `size` bytes to an echo and compare.
async fn echo_out(connection: &Connection, size: u64) -> Result<Value> {
    let started = Instant::now();
    let (mut send, mut receive) = connection.open_bi().await?;
    let writing = tokio::spawn(async move {
        for offset in (0..size).step_by(CHUNK_SIZE) {
            let end = size.min(offset + CHUNK_SIZE as u64);
            let chunk: Vec<u8> = (offset..end).map(byte_at).collect();
            send.write_all(&chunk).await?;
        }
        send.finish()?;
        anyhow::Ok(())
    });
    let mut count = 0;
    let mut is_equal = true;
    while let Some(chunk) = receive.read_chunk(CHUNK_SIZE, true).await? {
        let expected = (count..).map(byte_at);
        is_equal &= chunk
            .bytes
            .iter()
            .copied()
            .zip(expected)
            .all(|(a, b)| a == b);
        count += chunk.bytes.len() as u64;
    }
    writing.await??;
    let seconds = started.elapsed().as_secs_f64();
    Ok(json!({"size": count, "equal": is_equal && count == size, "seconds": seconds}))
}

/// The byte of an echo's data at an offset; no period that a packet or a chunk could hide behind.
fn byte_at(offset: u64) -> u8 {
    (offset.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn write_line(line: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn text<'a>(request: &'a Value, name: &str) -> Result<&'a str> {
    request[name].as_str().with_context(|| format!("no {name}"))
}

/// Parse a list of texts; none if it is not there.
fn parsed<T>(list: &Value) -> Result<Vec<T>>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let texts = list.as_array().map(Vec::as_slice).unwrap_or_default();
    texts
        .iter()
        .map(|one| Ok(one.as_str().context("no text")?.parse()?))
        .collect()
}

fn public_key(request: &Value) -> Result<PublicKey> {
    Ok(text(request, "node_id")?.parse()?)
}

fn hex(key: &PublicKey) -> String {
    key.as_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[tokio::main]
async fn main() -> Result<()> {
    let level = std::env::var("IROH_PEER_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::new(level))
        .init();
    let node = Arc::new(Node::default());
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        tokio::spawn(node.clone().answer(serde_json::from_str(&line)?));
    }
    if let Some(endpoint) = node.endpoint.get() {
        let _ = tokio::time::timeout(CLOSE_LIMIT, endpoint.close()).await;
    }
    std::process::exit(0);
}
