//! The admin address: metrics for Prometheus, health for whoever supervises, the state for operators.
//!
//! Metrics and health are open to whoever reaches the address. The rest is for this machine, or for whoever
//! shows the token.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use secrecy::ExposeSecret as _;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::status::Status;
use crate::config::{self, Secret};

/// Prometheus' text format.
const METRICS: [(header::HeaderName, &str); 1] =
    [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
const JSON: [(header::HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/json")];

/// Connections at a time; more wait for their turn.
const CONNECTIONS: usize = 64;
/// How long a connection may take for the head of its next request.
const HEAD: Duration = Duration::from_secs(5);
/// How long to wait after the system has refused a connection.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// The admin address, bound.
pub(super) struct Admin {
    /// Where it listens.
    pub(super) socket: TcpListener,
    guard: Guard,
}

/// Who may read more than metrics and health.
#[derive(Clone)]
struct Guard {
    /// Only this machine reaches the address.
    loopback: bool,
    token: Option<Secret>,
}

impl Admin {
    pub(super) async fn bind(admin: &config::Admin) -> io::Result<Self> {
        let socket = TcpListener::bind(admin.address).await?;
        let loopback = admin.address.ip().to_canonical().is_loopback();
        Ok(Self { socket, guard: Guard { loopback, token: admin.token.clone() } })
    }

    /// Answers until everything is over; not ready any more once the relay drains.
    pub(super) async fn serve(self, status: Arc<Status>, over: CancellationToken) {
        let guarded = Router::new()
            .route("/status", get(whole))
            .route("/status/{id}", get(transcripts))
            .route_layer(middleware::from_fn_with_state(self.guard, admit));
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .merge(guarded)
            .with_state(status);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let open = TaskTracker::new();
        while let Some(Ok(place)) =
            over.run_until_cancelled(Arc::clone(&places).acquire_owned()).await
        {
            let Some(accepted) = over.run_until_cancelled(self.socket.accept()).await else {
                break;
            };
            let Ok((stream, _)) = accepted else {
                // Out of files, most likely: asking again at once would only burn time.
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            };
            let service = TowerToHyperService::new(router.clone());
            let over = over.clone();
            open.spawn(async move {
                let serving = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD)
                    .serve_connection(TokioIo::new(stream), service);
                // Whoever asked and went away is not missed.
                let _ = over.run_until_cancelled(serving).await;
                drop(place);
            });
        }
        open.close();
        open.wait().await;
    }
}

async fn metrics(State(status): State<Arc<Status>>) -> impl IntoResponse {
    (METRICS, status.metrics())
}

async fn ready(State(status): State<Arc<Status>>) -> (StatusCode, String) {
    match status.trouble() {
        Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n")),
        None => (StatusCode::OK, "ready\n".to_owned()),
    }
}

async fn whole(State(status): State<Arc<Status>>) -> Response {
    (JSON, status.whole().await).into_response()
}

async fn transcripts(State(status): State<Arc<Status>>, Path(id): Path<String>) -> Response {
    match status.transcripts(&id) {
        Some(found) => (JSON, found).into_response(),
        None => {
            let none = format!(
                "no transcript of {id}: [log] transcripts says which are kept, and only the youngest are\n"
            );
            (StatusCode::NOT_FOUND, none).into_response()
        }
    }
}

async fn admit(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.judge(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(reason) => (StatusCode::FORBIDDEN, reason).into_response(),
    }
}

impl Guard {
    fn judge(&self, headers: &HeaderMap) -> Result<(), &'static str> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let shown = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        if let (Some(token), Some(shown)) = (&self.token, shown) {
            let token = token.load().map_err(|_| "[admin] token cannot be read\n")?;
            let same = same(token.expose_secret().as_bytes(), shown.as_bytes());
            return same.then_some(()).ok_or("this is not the token of [admin] token\n");
        }
        if !self.loopback {
            return Err(
                "from elsewhere this needs the header Authorization: Bearer with what [admin] token names\n",
            );
        }
        // A page in a browser on this machine may ask too, under a name that its author has pointed here.
        let host = text(header::HOST).unwrap_or_default();
        let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
        let name = name.map_or(host, |(name, _)| name).trim_matches(['[', ']']);
        let local = name.eq_ignore_ascii_case("localhost")
            || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        local.then_some(()).ok_or("ask for it by address or as localhost\n")
    }
}

/// Takes as long for a wrong token as for the right one.
fn same(token: &[u8], shown: &[u8]) -> bool {
    token.len() == shown.len() && openssl::memcmp::eq(token, shown)
}
