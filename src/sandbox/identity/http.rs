//! The endpoint itself.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use jiff::fmt::rfc2822::DateTimePrinter;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Authority, Fault, grant::Form, refusal::Refusal};

/// The longest request, in octets.
const LONGEST: usize = 64 * 1024;
/// How long to wait after the system has refused a connection.
const AFTER_ERROR: Duration = Duration::from_millis(100);

const JSON: &str = "application/json; charset=utf-8";
const PAGE: &str = "text/html; charset=utf-8";
/// What people see who follow a device code's address.
const SIGN_IN: &str = "<!doctype html><title>Sign in</title><form><p>Code <input name=code> \
    <button name=answer value=yes>Sign in</button> <button name=answer value=no>Decline</button></form>";

pub(super) async fn serve(
    socket: TcpListener,
    authority: Arc<Authority>,
    stop: CancellationToken,
    tracker: TaskTracker,
) {
    let faulty = Router::new()
        .route("/{tenant}/oauth2/v2.0/token", post(token))
        .route("/{tenant}/oauth2/v2.0/devicecode", post(device_code))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&authority), misbehave));
    let router = Router::new()
        .route("/{tenant}/elsewhere/token", post(token))
        .route("/{tenant}/oauth2/v2.0/authorize", get(authorize))
        .route("/devicelogin", get(sign_in))
        .route("/introspect", get(introspect).post(introspect))
        .merge(faulty)
        .layer(DefaultBodyLimit::max(LONGEST))
        .layer(middleware::from_fn_with_state(Arc::clone(&authority), dated))
        .with_state(Arc::clone(&authority));
    while let Some(accepted) = stop.run_until_cancelled(socket.accept()).await {
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(AFTER_ERROR).await;
            continue;
        };
        if authority.known().fault == Some(Fault::Down) {
            continue;
        }
        let service = TowerToHyperService::new(router.clone());
        let stop = stop.clone();
        tracker.spawn(async move {
            // One request each, so that what is down is down for everybody.
            let mut connection = http1::Builder::new();
            let serving =
                connection.keep_alive(false).serve_connection(TokioIo::new(stream), service);
            let _ = stop.run_until_cancelled(serving).await;
        });
    }
}

async fn token(
    State(authority): State<Arc<Authority>>,
    Path(tenant): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> Response {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let url = format!("http://{host}{}", uri.path());
    answer(&authority, authority.grant(&tenant, &url, &Form::parse(&body)))
}

async fn device_code(
    State(authority): State<Arc<Authority>>,
    Path(tenant): Path<String>,
    body: String,
) -> Response {
    answer(&authority, authority.device_code(&tenant, &Form::parse(&body)))
}

async fn authorize(
    State(authority): State<Arc<Authority>>,
    Path(tenant): Path<String>,
    uri: Uri,
) -> Response {
    match authority.authorize(&tenant, &Form::parse(uri.query().unwrap_or_default())) {
        Ok(back) => (StatusCode::FOUND, [(header::LOCATION, back.as_str())]).into_response(),
        Err(refusal) => refusal.answer(authority.now()),
    }
}

async fn sign_in(State(authority): State<Arc<Authority>>, uri: Uri) -> Response {
    let form = Form::parse(uri.query().unwrap_or_default());
    let page = match (form.get("code").map(str::to_ascii_uppercase), form.get("answer")) {
        (Some(code), Some("no")) if authority.decline(&code) => "Declined.",
        (Some(code), Some(_)) if authority.approve(&code, authority.somebody()) => "Signed in.",
        (Some(_), Some(_)) => "There is no such code.",
        _ => SIGN_IN,
    };
    ([(header::CONTENT_TYPE, PAGE)], page).into_response()
}

async fn introspect(
    State(authority): State<Arc<Authority>>,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> Response {
    let (query, form) = (Form::parse(uri.query().unwrap_or_default()), Form::parse(&body));
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
    let token = form.get("token").or(query.get("token")).or(bearer).unwrap_or_default();
    answer(&authority, Ok(authority.introspect(token)))
}

fn answer(authority: &Authority, answer: Result<Value, Refusal>) -> Response {
    match answer {
        Ok(granted) => {
            let headers = [(header::CONTENT_TYPE, JSON), (header::CACHE_CONTROL, "no-store")];
            (headers, granted.to_string()).into_response()
        }
        Err(refusal) => refusal.answer(authority.now()),
    }
}

/// What is due instead of an answer, or before it.
async fn misbehave(
    State(authority): State<Arc<Authority>>,
    request: Request,
    next: Next,
) -> Response {
    if request.uri().path().ends_with("/token") {
        authority.requests.fetch_add(1, Ordering::SeqCst);
    }
    let fault = authority.known().fault;
    if let Some(Fault::Slow(seconds)) = fault {
        tokio::time::sleep(Duration::try_from_secs_f64(seconds).unwrap_or_default()).await;
    }
    match fault.and_then(|fault| spoiled(fault, request.uri().path())) {
        Some(response) => response,
        None => next.run(request).await,
    }
}

fn spoiled(fault: Fault, path: &str) -> Option<Response> {
    let json = [(header::CONTENT_TYPE, JSON)];
    let again = |status: StatusCode, after: u64| {
        (status, [(header::RETRY_AFTER, after.to_string())]).into_response()
    };
    Some(match fault {
        // Whoever connects is cut off already.
        Fault::Down | Fault::Slow(_) => return None,
        Fault::Html => {
            let page = "<!doctype html><title>Sign in to the guest network</title><p>Welcome!";
            ([(header::CONTENT_TYPE, PAGE)], page).into_response()
        }
        Fault::Redirect => {
            let elsewhere = path.replace("/oauth2/v2.0/", "/elsewhere/");
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, elsewhere)]).into_response()
        }
        Fault::TooMany(after) => again(StatusCode::TOO_MANY_REQUESTS, after),
        Fault::Unavailable(after) => again(StatusCode::SERVICE_UNAVAILABLE, after),
        Fault::WrongJson => {
            (json, "{\"token_type\":\"Bearer\",\"access_token\":17}").into_response()
        }
        Fault::Huge => {
            let token = "x".repeat(10_000_000);
            (
                json,
                format!(
                    "{{\"token_type\":\"Bearer\",\"expires_in\":3599,\"access_token\":\"{token}\"}}"
                ),
            )
                .into_response()
        }
    })
}

/// Its clock may be wrong, and then shows so.
async fn dated(State(authority): State<Arc<Authority>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let date = jiff::Timestamp::from_second(authority.now())
        .ok()
        .and_then(|now| DateTimePrinter::new().timestamp_to_rfc9110_string(&now).ok())
        .and_then(|date| HeaderValue::from_str(&date).ok());
    if let Some(date) = date {
        response.headers_mut().insert(header::DATE, date);
    }
    response
}
