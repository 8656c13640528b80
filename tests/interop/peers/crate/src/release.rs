//! What differs between the releases of the iroh crate.
//!
//! Up to 0.93 an endpoint was called a node.

use std::net::SocketAddr;

use anyhow::{Context, Result};

#[cfg(feature = "iroh-0-90")]
pub use iroh_0_90 as iroh;
#[cfg(feature = "iroh-0-92")]
pub use iroh_0_92 as iroh;
#[cfg(feature = "iroh-0-95")]
pub use iroh_0_95 as iroh;

use iroh::endpoint::{Builder, Connection};
use iroh::{Endpoint, PublicKey, RelayMode, RelayUrl, Watcher};

/// A builder without discovery services.
pub fn builder(relay_mode: RelayMode) -> Builder {
    #[cfg(feature = "iroh-0-95")]
    return Endpoint::empty_builder(relay_mode);
    #[cfg(not(feature = "iroh-0-95"))]
    Endpoint::builder().relay_mode(relay_mode)
}

pub fn id_of(endpoint: &Endpoint) -> PublicKey {
    #[cfg(feature = "iroh-0-95")]
    return endpoint.id();
    #[cfg(not(feature = "iroh-0-95"))]
    endpoint.node_id()
}

/// The home relay, once there is one.
pub async fn home_relay(endpoint: &Endpoint) -> Result<RelayUrl> {
    #[cfg(feature = "iroh-0-95")]
    {
        endpoint.online().await;
        let addr = endpoint.addr();
        let url = addr.relay_urls().next().cloned();
        url.context("online without a relay")
    }
    #[cfg(not(feature = "iroh-0-95"))]
    loop {
        if let Some(url) = current(endpoint.home_relay())?.into_iter().next() {
            return Ok(url);
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// How an endpoint thinks it reaches another: direct, mixed, relay or none.
pub fn path_kind(endpoint: &Endpoint, id: PublicKey) -> Result<String> {
    let Some(watcher) = endpoint.conn_type(id) else {
        return Ok("none".into());
    };
    let text = current(watcher)?.to_string();
    Ok(text.split('(').next().unwrap_or_default().to_owned())
}

/// What a watcher would show now; in 0.90 it can have lost what it watches.
#[cfg_attr(feature = "iroh-0-90", allow(unused_mut))]
fn current<W: Watcher>(mut watcher: W) -> Result<W::Value> {
    #[cfg(feature = "iroh-0-90")]
    return Ok(watcher.get()?);
    #[cfg(not(feature = "iroh-0-90"))]
    Ok(watcher.get())
}

pub async fn connect(
    endpoint: &Endpoint,
    id: PublicKey,
    relay_url: Option<RelayUrl>,
    addresses: Vec<SocketAddr>,
    alpn: &[u8],
) -> Result<Connection> {
    #[cfg(feature = "iroh-0-95")]
    let addr = {
        use iroh::{EndpointAddr, TransportAddr};
        let relays = relay_url.into_iter().map(TransportAddr::Relay);
        let ips = addresses.into_iter().map(TransportAddr::Ip);
        EndpointAddr::from_parts(id, relays.chain(ips))
    };
    #[cfg(not(feature = "iroh-0-95"))]
    let addr = iroh::NodeAddr::from_parts(id, relay_url, addresses);
    Ok(endpoint.connect(addr, alpn).await?)
}

pub fn remote_id(connection: &Connection) -> Result<PublicKey> {
    #[cfg(feature = "iroh-0-95")]
    return Ok(connection.remote_id());
    #[cfg(not(feature = "iroh-0-95"))]
    connection.remote_node_id().context("no remote id")
}

pub fn alpn(connection: &Connection) -> Vec<u8> {
    #[cfg(feature = "iroh-0-95")]
    return connection.alpn().to_vec();
    #[cfg(not(feature = "iroh-0-95"))]
    connection.alpn().unwrap_or_default()
}
