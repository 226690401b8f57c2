//! The admin address: metrics for Prometheus, health for whoever supervises.

use std::{io, net::SocketAddr};

use axum::{
    Router,
    http::{StatusCode, header},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::telemetry::metrics::Metrics;

/// Prometheus' text format.
const METRICS: [(header::HeaderName, &str); 1] =
    [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];

pub(super) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Answers until everything is over; not ready any more once the relay drains.
pub(super) async fn serve(
    socket: TcpListener,
    metrics: Metrics,
    drain: CancellationToken,
    over: CancellationToken,
) {
    let ready = move || {
        let draining = drain.is_cancelled();
        async move {
            if draining {
                (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
            } else {
                (StatusCode::OK, "ready\n")
            }
        }
    };
    let router = Router::new()
        .route("/metrics", get(move || async move { (METRICS, metrics.render()) }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready));
    if let Err(error) =
        axum::serve(socket, router).with_graceful_shutdown(over.cancelled_owned()).await
    {
        tracing::error!(%error, "the admin address is gone");
    }
}
