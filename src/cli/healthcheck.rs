//! `smtp-uplift healthcheck`

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    time::Duration,
};

use anyhow::{anyhow, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{net::TcpStream, time::timeout};

use super::{ConfigFile, FAILED, OK, complain};
use crate::config;

/// How long the whole question may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Octets of the longest answer that is worth printing.
const SENTENCE: usize = 200;
/// Octets of the longest document that is read.
const DOCUMENT: usize = 16 * 1024 * 1024;

#[derive(clap::Args)]
#[command(after_help = "Exits with 0 if it is ready, else with 1 and the reason.")]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
}

/// Exits with 0 or 1 only: other codes mean nothing to those who ask for health.
pub(super) async fn run(args: Args) -> u8 {
    let path = args.config.path();
    // No more of the configuration than is needed: a healthcheck may run without the secrets.
    let admin = match config::places(&path) {
        Ok(places) => places.admin.filter(|address| address.port() != 0),
        Err(problems) => return complain(&problems, FAILED),
    };
    let Some(address) = admin else {
        let error = format!(
            "{}: [admin] has no fixed address to ask; write address = \"127.0.0.1:9525\" there",
            path.display()
        );
        return complain(&error, FAILED);
    };
    let error = match timeout(DEADLINE, ask(address)).await {
        Ok(Ok(())) => {
            say!("ready");
            return OK;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("{address} has not answered within {} s", DEADLINE.as_secs()),
    };
    complain(&format!("not ready: {error}"), FAILED)
}

async fn ask(admin: SocketAddr) -> anyhow::Result<()> {
    let (status, said) = get(admin, "/readyz", None, SENTENCE).await?;
    let said = said.replace(char::is_control, " ").trim().to_owned();
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::SERVICE_UNAVAILABLE if !said.is_empty() => bail!("{said}"),
        StatusCode::SERVICE_UNAVAILABLE => bail!("{status}"),
        _ => bail!("{admin} answers {status}; is it another program?"),
    }
}

/// What a running relay warns of in its `/status`; `None` if none answers there.
pub(super) async fn warnings(admin: Option<&config::Admin>) -> Option<Vec<String>> {
    let config::Admin { address, token } = admin.filter(|admin| admin.address.port() != 0)?;
    let token = token.as_ref().and_then(|token| token.load().ok());
    let asked = get(*address, "/status", token.as_ref(), DOCUMENT);
    let (status, said) = timeout(DEADLINE, asked).await.ok()?.ok()?;
    let document: serde_json::Value = serde_json::from_str(&said).ok()?;
    let warnings = document.get("warnings").filter(|_| status == StatusCode::OK)?.as_array()?;
    Some(warnings.iter().filter_map(|it| it.as_str()).map(str::to_owned).collect())
}

/// The status of an answer of the admin address, and its text if that is no longer than `limit`.
async fn get(
    admin: SocketAddr,
    path: &str,
    token: Option<&SecretString>,
    limit: usize,
) -> anyhow::Result<(StatusCode, String)> {
    let stream = TcpStream::connect(&reachable(admin)[..])
        .await
        .map_err(|error| anyhow!("nothing listens on {admin} ({error}); is the relay running?"))?;
    let mut request = Request::get(path).header(header::HOST, stream.peer_addr()?.to_string());
    if let Some(token) = token {
        let value = format!("Bearer {}", token.expose_secret());
        request = request.header(header::AUTHORIZATION, value);
    }
    let request = request.body(Empty::<Bytes>::new())?;
    exchange(stream, request, limit).await.map_err(|error| {
        anyhow!("{admin} does not answer in HTTP ({error}); is it another program?")
    })
}

async fn exchange(
    stream: TcpStream,
    request: Request<Empty<Bytes>>,
    limit: usize,
) -> hyper::Result<(StatusCode, String)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut answer = pin!(async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, limit).collect().await;
        let said = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
        Ok((head.status, said.unwrap_or_default()))
    });
    tokio::select! {
        answer = &mut answer => return answer,
        _ = connection => {}
    }
    // What had come by then is known to the answer, and so is why there is no more.
    answer.await
}

/// Where an address of the configuration can be reached from this machine.
fn reachable(address: SocketAddr) -> Vec<SocketAddr> {
    let loopback: &[IpAddr] = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
        // Where there is no IPv6 it is IPv4 that is served.
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            &[IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)]
        }
        _ => return vec![address],
    };
    loopback.iter().map(|host| SocketAddr::new(*host, address.port())).collect()
}
