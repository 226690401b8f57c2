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
use tokio::{net::TcpStream, time::timeout};

use super::{ConfigFile, FAILED, OK, complain};
use crate::config;

/// How long the whole question may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Octets of the longest answer that is worth printing.
const SENTENCE: usize = 200;

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
    let stream = TcpStream::connect(&reachable(admin)[..])
        .await
        .map_err(|error| anyhow!("nothing listens on {admin} ({error}); is the relay running?"))?;
    let request = Request::get("/readyz")
        .header(header::HOST, stream.peer_addr()?.to_string())
        .body(Empty::<Bytes>::new())?;
    let (status, said) = get(stream, request).await.map_err(|error| {
        anyhow!("{admin} does not answer in HTTP ({error}); is it another program?")
    })?;
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::SERVICE_UNAVAILABLE if !said.is_empty() => bail!("{said}"),
        StatusCode::SERVICE_UNAVAILABLE => bail!("{status}"),
        _ => bail!("{admin} answers {status}; is it another program?"),
    }
}

/// The status of the answer, and its text if that is a sentence.
async fn get(
    stream: TcpStream,
    request: Request<Empty<Bytes>>,
) -> hyper::Result<(StatusCode, String)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut answer = pin!(async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, SENTENCE).collect().await;
        let said = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
        let said = said.unwrap_or_default().replace(char::is_control, " ");
        Ok((head.status, said.trim().to_owned()))
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
